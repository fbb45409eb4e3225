package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/agent/mount"
	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/boards"
)

// readFirmware takes what a person or `skerry flash` has left on FIRMWARE: the
// configuration is copied, the provisioning bundle is taken away. FIRMWARE is
// mounted only meanwhile, and writable only when there is a bundle, or other
// overlays than boot.scr knows of.
func readFirmware(s *System) error {
	restart, err := s.readFirmware()
	if restart {
		s.restart("U-Boot is to apply the overlays of skerry.yaml")
	}
	return err
}

func (s *System) readFirmware() (restart bool, err error) {
	fat := mount.Mount{Target: firmwareDir, Type: "vfat", Flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, Data: "umask=0077"}
	if fat.Source, err = s.disk.partition("/dev", boards.PartFirmware); err == nil {
		if err = fat.Apply(); err != nil {
			err = fmt.Errorf("%v: %w", fat, err)
		}
	}
	if err != nil {
		return false, s.configure(nil, err, savedConfig, runDir)
	}
	defer func() { err = errors.Join(err, unix.Unmount(firmwareDir, 0)) }()
	switch asked, err := s.resetByFile(fat); {
	case err != nil:
		s.Console.Errorf("%v", err)
	case asked:
		return false, nil // what else is on FIRMWARE is for the node that comes after
	}
	data, err := config.ReadFile(filepath.Join(firmwareDir, config.FileName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = nil // all defaults
	case err != nil:
		err = fmt.Errorf("read configuration: %w", err)
	}
	if err := s.configure(data, err, savedConfig, runDir); err != nil {
		return false, err
	}
	writable := func() error {
		if err := unix.Mount("", firmwareDir, "", unix.MS_REMOUNT|unix.MS_SYNCHRONOUS|fat.Flags&^unix.MS_RDONLY, fat.Data); err != nil {
			return fmt.Errorf("make FIRMWARE writable: %w", err)
		}
		return nil
	}
	restart, err = s.storeOverlays(firmwareDir, triedOverlays, writable)
	if err != nil {
		s.Console.Errorf("%v", err) // the bundle matters more
	}
	if _, err := os.Lstat(filepath.Join(firmwareDir, provision.FileName)); err != nil {
		return restart, nil
	}
	if err := writable(); err != nil {
		return restart, err
	}
	taken, err := provision.Take(firmwareDir, stateDir)
	if taken {
		s.Console.Printf("provisioning bundle taken from FIRMWARE")
	}
	return restart, err
}

// configure puts the text of skerry.yaml to use, and into dir for skerryd. A
// FIRMWARE that cannot be read (fault says why) must not make another node of
// this one: then the copy of what was read last counts, at saved.
func (s *System) configure(data []byte, fault error, saved, dir string) error {
	var err error
	if fault == nil {
		if err = atomicfile.WriteFile(saved, data, 0o600); err != nil {
			err = fmt.Errorf("keep copy of configuration: %w", err)
		}
	} else if data, err = os.ReadFile(saved); err == nil {
		s.Console.Printf("FIRMWARE cannot be read; using the copy of its %s from an earlier boot", config.FileName)
	} else {
		s.Console.Printf("FIRMWARE cannot be read, and there is no copy of its %s; using defaults", config.FileName)
	}
	var mistakes []config.Mistake
	s.config, mistakes = config.Parse(data)
	s.learn(func(k *known) { k.mistakes, k.console = mistakes, s.config.Console })
	for _, m := range mistakes {
		s.Console.Errorf("%v", m)
	}
	return errors.Join(fault, err, os.WriteFile(filepath.Join(dir, config.FileName), data, 0o600)) // it may hold passwords
}
