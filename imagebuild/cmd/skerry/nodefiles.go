package main

import (
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/boards"
)

// addConfig puts a skerry.yaml and the device-tree overlays beside it into the
// files of FIRMWARE, and what boot.scr has to know of them. All mistakes are
// told at once. What it doesn't find it says on warn: the person may
// put that on the card.
func addConfig(files map[string][]byte, configFile string, overlayFiles []string, warn io.Writer) error {
	for _, file := range overlayFiles {
		name, ok := strings.CutSuffix(filepath.Base(file), ".dtbo")
		overlay := config.Overlay(name)
		if err := overlay.UnmarshalText([]byte(name)); err != nil || !ok {
			return usageError{fmt.Errorf("--overlay %s: want a file NAME.dtbo, with a name of at most 48 letters, digits and -_.", file)}
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read overlay: %w", err)
		}
		if len(data) > boards.TreeRoom {
			return fmt.Errorf("overlay %q: got %d bytes, want at most %d", file, len(data), boards.TreeRoom)
		}
		files[path.Join(boards.OverlaysDir, name+".dtbo")] = data
	}
	if configFile == "" {
		return nil
	}
	data, err := config.ReadFile(configFile)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	c, mistakes := config.Parse(data)
	if len(mistakes) > 0 {
		var text strings.Builder
		for _, m := range mistakes {
			fmt.Fprintf(&text, "\n  %v", m)
		}
		return fmt.Errorf("%s is not right, nothing was written:%s", configFile, text.String())
	}
	files[config.FileName] = data
	var names []string
	for _, o := range c.Overlays {
		names = append(names, string(o))
		if _, there := files[path.Join(boards.OverlaysDir, string(o)+".dtbo")]; !there {
			fmt.Fprintf(warn, "skerry: overlay %s: the node will look for %s/%s.dtbo on FIRMWARE; copy it there, or use --overlay\n", o, boards.OverlaysDir, o)
		}
	}
	if len(names) == 0 {
		delete(files, boards.OverlaysFile)
		return nil
	}
	files[boards.OverlaysFile], err = boards.OverlaysEnv(names)
	return err
}
