// Command init is PID 1 of Skerry, twice: started by the kernel as /init in
// the initramfs, where it finds, checks and mounts the root file system of the
// chosen slot, and then as /sbin/init from that root, where it brings the node
// up, keeps its units alive, and brings it down.
//
// Called as modprobe (or with that as its first argument) it loads kernel
// modules, for the kernel itself and for programs that ask for one.
//
//	SIGTERM, SIGINT   reboot        (SIGINT is what ctrl-alt-del becomes)
//	SIGUSR2           power off     (as the power key does)
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/boot"
	"skerry.internal/skerry/agent/modules"
	"skerry.internal/skerry/agent/supervise"
)

func main() {
	name, args := filepath.Base(os.Args[0]), os.Args[1:]
	if len(args) > 0 && args[0] == "modprobe" {
		name, args = args[0], args[1:]
	}
	if name == "modprobe" {
		if err := modules.Modprobe(args); err != nil {
			fmt.Fprintln(os.Stderr, "modprobe:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "init: this is the first process of a Skerry node; the kernel starts it")
		os.Exit(2)
	}
	s := boot.New()
	command, err := run(s)
	if err != nil {
		s.ShowLog()
		s.Console.Errorf("%v", err)
		var step *boot.StepError
		if errors.As(err, &step) {
			s.Console.Errorf("the boot has stopped at %q", step.Step)
		}
		pause := s.Pause(err)
		if os.Args[0] == "/init" {
			pause = s.GiveUp(err)
		}
		s.Console.Printf("rebooting in %v", pause)
		s.Feeder.Alive(pause + boot.FirstPause)
		time.Sleep(pause)
		command = unix.LINUX_REBOOT_CMD_RESTART
	}
	unix.Sync()
	end(s, command)
}

// end reboots or powers off, and does not return.
func end(s *boot.System, command int) {
	s.Feeder.Stop()
	if command == unix.LINUX_REBOOT_CMD_POWER_OFF && s.Hardware != nil {
		s.Hardware.Disarm() // else some boards wake up again
	}
	err := unix.Reboot(command)
	s.Console.Errorf("reboot: %v", err)
	select {} // the watchdog, if there is one, is what is left
}

// turnLimit is how long init's loop may hang before the watchdog is no longer fed.
const turnLimit = 30 * time.Second

// run is the life of a node. It returns how it is to end; an error means that
// it has ended badly.
func run(s *boot.System) (command int, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("init: panic: %v", p)
		}
	}()
	// ctrl-alt-del is a request like others, not a reset.
	unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	if os.Args[0] == "/init" {
		return 0, initramfs(s)
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGUSR2)
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP)
	s.Supervise(supervise.NewReaper())
	booted := make(chan error, 1)
	go func() {
		err := s.Run(boot.Root)
		if err == nil {
			s.Booted()
		}
		booted <- err
	}()
	turn := time.NewTicker(5 * time.Second)
	defer turn.Stop()
	up := false // until then the steps promise for themselves
	for {
		select {
		case err := <-booted:
			if err != nil {
				return 0, err
			}
			up = true
			s.Feeder.Alive(turnLimit) // the last step had promised more
			wedge(s)
		case <-turn.C:
			if up {
				s.Feeder.Alive(turnLimit)
			}
		case sig := <-signals:
			if sig == unix.SIGUSR2 {
				return shutdown(s, unix.LINUX_REBOOT_CMD_POWER_OFF, "power off")
			}
			return shutdown(s, unix.LINUX_REBOOT_CMD_RESTART, "reboot")
		case r := <-s.Requests:
			return shutdown(s, r.Command, r.Why)
		case <-s.PowerKey:
			return shutdown(s, unix.LINUX_REBOOT_CMD_POWER_OFF, "power off, the power key was pressed")
		}
	}
}

// initramfs runs the first half of the boot and then the init of the root file
// system in this process. It returns only when that went wrong.
func initramfs(s *boot.System) error {
	if err := s.Run(boot.Initramfs); err != nil {
		return err
	}
	env := []string{"PATH=/usr/sbin:/usr/bin", boot.StepsVariable + "=" + s.BequeathSteps()}
	if s.Hardware != nil {
		s.Feeder.Stop()
		fd, err := s.Hardware.Bequeath()
		if err != nil {
			return err
		}
		env = append(env, boot.WatchdogVariable+"="+fd)
	}
	err := syscall.Exec(nextInit, []string{boot.Init}, env)
	return fmt.Errorf("execute %q: %w", nextInit, err)
}

// shutdown brings the node down in order, and in any case in bounded time.
func shutdown(s *boot.System, command int, why string) (int, error) {
	s.ShowLog()
	s.Console.Printf("going down: %s", why)
	time.AfterFunc(boot.ShutdownLimit, func() {
		s.Console.Errorf("going down took more than %v", boot.ShutdownLimit)
		end(s, command)
	})
	return command, s.Run(boot.Shutdown)
}
