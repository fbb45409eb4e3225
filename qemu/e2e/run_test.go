package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

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
	if err == nil || !strings.Contains(out, `rpi9`) || !strings.Contains(out, "rpi3, rpi4") {
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
	if out, err := call("stop"); err != nil {
		t.Errorf("make stop: %v\n%s", err, out)
	}
	if out, err := exec.Command("sh", "-ec", typed[1]+"\nkubectl get namespaces --request-timeout=5s").CombinedOutput(); err == nil {
		t.Errorf("the API answers after make stop:\n%s", out)
	}
}
