package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/slots"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
)

// TestMakeRun types what the README says and then what make run says.
func TestMakeRun(t *testing.T) {
	bootImage(t) // says what is missing
	build, err := qemu.BuildDir()
	if err != nil {
		t.Fatal(err)
	}
	const machine = "try-make-run"
	folder := filepath.Join(build, machine)
	call := func(args ...string) (string, error) {
		cmd := exec.Command("make", append([]string{"--no-print-directory", "-C", filepath.Dir(build), "NAME=" + machine}, args...)...)
		cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MAKELEVEL=")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	t.Cleanup(func() {
		call("stop")
		os.RemoveAll(folder)
		os.RemoveAll(filepath.Join(build, "qemu", machine))
	})

	out, err := call("run", "BOARD=rpi9")
	if err == nil || !strings.Contains(out, `rpi9`) || !strings.Contains(out, strings.Join(boards.Names(), ", ")) {
		t.Errorf("make run BOARD=rpi9: %v\n%s\nwant a failure that names the boards", err, out)
	}
	if out, err = call("run"); err != nil {
		t.Fatalf("make run: %v\n%s", err, out)
	}
	typed := regexp.MustCompile(`(?s)now type: (export .*?)\n +(kubectl .*?)  `).FindStringSubmatch(out)
	if typed == nil || !regexp.MustCompile(`(?m)^\S+ +Ready `).MatchString(out) {
		t.Fatalf("make run printed neither a node that is Ready nor what to type next:\n%s", out)
	}
	if out, err := exec.Command("sh", "-ec", typed[1]+"\n"+typed[2]+"\nkubectl get namespaces").CombinedOutput(); err != nil || !strings.Contains(string(out), "kube-system") {
		t.Errorf("what make run says to type: %v\n%s", err, out)
	}
	verb := func(args ...string) string {
		t.Helper()
		line := "skerry qemu " + strings.Join(args, " ")
		out, err := exec.Command("sh", "-ec", typed[1]+"\n"+line).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", line, err, out)
		}
		return string(out)
	}
	var stats struct {
		Machine struct {
			ReadySeconds float64 `json:"readySeconds"`
		} `json:"machine"`
		Stats struct {
			Written int64 `json:"bytesWritten"`
		} `json:"stats"`
	}
	if out := verb("stats", machine, "--json"); json.Unmarshal([]byte(out), &stats) != nil || stats.Stats.Written < 1<<20 || stats.Machine.ReadySeconds < 1 {
		t.Errorf("skerry qemu stats: %s\nwant what was written, and the seconds until Ready", out)
	}
	namespaces := func(limit string) error {
		out, err := exec.Command("sh", "-ec", typed[1]+"\nkubectl get namespaces --request-timeout="+limit).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	answers := func(when string) {
		t.Helper()
		for deadline := time.Now().Add(3 * time.Minute); ; <-time.After(time.Second) {
			err := namespaces("20s")
			if err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the API %s: no answer within three minutes: %v", when, err)
			}
		}
	}
	verb("link", machine, "--unplug")
	if namespaces("5s") == nil {
		t.Error("the API answers with the cable out")
	}
	verb("link", machine, "--plug")
	answers("with the cable in again")
	if testAll() { // it is another boot
		verb("cut", machine)
		if namespaces("5s") == nil {
			t.Error("the API answers after a power cut")
		}
		verb("start", machine)
		answers("after skerry qemu start")
	}
	if out, err := call("stop"); err != nil {
		t.Errorf("make stop: %v\n%s", err, out)
	}
	if namespaces("5s") == nil {
		t.Error("the API answers after make stop")
	}
}

// TestDamagedImage: one line says what is wrong with an image, status 1, and nothing
// is made.
func TestDamagedImage(t *testing.T) {
	image, damaged := bootImage(t), filepath.Join(t.TempDir(), "damaged.img")
	if out, err := exec.Command("cp", "--sparse=always", image, damaged).CombinedOutput(); err != nil {
		t.Fatalf("copy the image: %v\n%s", err, out)
	}
	f, err := os.OpenFile(damaged, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := boards.SlotAStart + int64(bootFile(t, readSlotA(t, image), func(m *slots.Manifest) slots.BootFile { return m.Kernel }))
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{b[0] ^ 1}, at); err != nil {
		t.Fatal(err)
	}
	build, err := qemu.BuildDir()
	if err != nil {
		t.Fatal(err)
	}
	command := skerryCommand(t)
	const machine = "try-damaged"
	t.Cleanup(func() { exec.Command(command, "qemu", "down", machine).Run() })
	for _, args := range [][]string{{"image", "inspect"}, {"qemu", "up", "--name", machine, "--detach", "--image"}} {
		cmd := exec.Command(command, append(args, damaged)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		cmd.Run()
		if said := stderr.String(); cmd.ProcessState.ExitCode() != 1 || strings.Count(said, "\n") != 1 || !strings.Contains(said, "damaged.img is damaged: slot a: check ") {
			t.Errorf("skerry %s: status %d, says %q; want 1 and one line that names the damage", strings.Join(args, " "), cmd.ProcessState.ExitCode(), said)
		}
	}
	if _, err := os.Stat(filepath.Join(build, "qemu", machine)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("skerry qemu up of a damaged image leaves its folder behind: %v", err)
	}
	if out, err := exec.Command(command, "image", "inspect", image).CombinedOutput(); err != nil {
		t.Errorf("skerry image inspect of the image itself: %v\n%s", err, out)
	}
}
