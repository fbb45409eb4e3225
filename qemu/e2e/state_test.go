//go:build full

package e2e

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/boards"
)

// stateNode is a node and the operator's command.
type stateNode struct {
	*node
	program, address string
}

func startStateNode(t *testing.T) *stateNode {
	t.Helper()
	n := startNode(t, withStatus)
	return &stateNode{node: n, program: skerryCommand(t), address: fmt.Sprintf("127.0.0.1:%d", n.vm.Port(api.Port))}
}

// skerry runs the operator's command on the node's cluster.
func (n *stateNode) skerry(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(n.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.program, append(args, "--cluster", "e2e")...)
	cmd.Env = append(os.Environ(), "SKERRY_HOME="+n.home)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("skerry %q: %w: %s", args, err, out)
	}
	return string(out), err
}

func (n *stateNode) problems() string {
	n.t.Helper()
	out, err := n.skerry("node", "status", n.address, "--json")
	if err != nil {
		n.t.Fatal(err)
	}
	var st api.Status
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		n.t.Fatal(err)
	}
	return fmt.Sprintf("%+v", st.Problems)
}

// again cuts the power, does something to the disk, and powers the machine on.
func (n *stateNode) again(meanwhile func()) {
	n.t.Helper()
	n.vm.Cut()
	meanwhile()
	if err := n.vm.Start(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
}

// blocks returns where on STATE a file's blocks are.
func (n *stateNode) blocks(file string) (blocks []int) {
	n.t.Helper()
	state := n.copyState(n.t.TempDir())
	if err := replay(state); err != nil { // debugfs wants the journal's blocks in their places
		n.t.Fatal(err)
	}
	out := n.host("debugfs", "-R", "blocks "+file, state)
	for _, f := range strings.Fields(out) {
		if b, err := strconv.Atoi(f); err == nil && b > 0 {
			blocks = append(blocks, b)
		}
	}
	if len(blocks) < 30 {
		n.t.Fatalf("%s has %d blocks: %s", file, len(blocks), out)
	}
	return blocks
}

// spoil writes noise over blocks of STATE.
func (n *stateNode) spoil(blocks []int) {
	n.t.Helper()
	noise := filepath.Join(n.t.TempDir(), "noise")
	data := make([]byte, 4096)
	rand.Read(data)
	if err := os.WriteFile(noise, data, 0o600); err != nil {
		n.t.Fatal(err)
	}
	for _, b := range blocks {
		writeFile(n.t.(*testing.T), n.vm, boards.StateStart+b*4096, noise, 4096)
	}
}

// TestDamagedDatabase spoils the database of a node that is off. The node says so
// with what to type, stays reachable, and is well again when that was typed. The
// same power cut without noise in the database is the twin: nothing is said.
func TestDamagedDatabase(t *testing.T) {
	n := startStateNode(t)
	n.k("create", "configmap", "kept", "--from-literal=a=b")
	file := filepath.Join(t.TempDir(), "backup.db")
	if out, err := n.skerry("cluster", "backup", n.address, "-o", file); err != nil {
		t.Fatal(err)
	} else {
		t.Log(out)
	}
	n.k("create", "configmap", "later", "--from-literal=a=b")

	n.again(func() {})
	n.expect(`skerry: node ready`, bootTime)
	n.want("later", "get", "configmap", "later")
	if console := n.vm.Console(); strings.Contains(console, "is damaged") {
		t.Errorf("a power cut alone: the console says\n%s", console[max(0, len(console)-2000):])
	}

	// To the end of the name: a console comes in pieces.
	damaged := regexp.MustCompile(`error: the database is damaged: .*type: skerry cluster restore barn-1 --snapshot (\S+)\s`)
	n.again(func() { // the middle third
		blocks := n.blocks("/lib/skerry/db/state.db")
		n.spoil(blocks[len(blocks)/3 : 2*len(blocks)/3])
	})
	n.expect(damaged.String(), bootTime)
	snapshot := damaged.FindStringSubmatch(n.vm.Console())[1]
	if got := n.problems(); !strings.Contains(got, snapshot) {
		t.Errorf("problems of the status: %s; want the snapshot %s in them", got, snapshot)
	}
	if out, err := n.try("", "get", "configmaps", "--request-timeout=10s"); err == nil {
		t.Errorf("a damaged database serves: %s", out)
	}
	if out, err := n.skerry("cluster", "snapshots", n.address); err != nil || !strings.Contains(out, snapshot) {
		t.Errorf("skerry cluster snapshots = %q, %v; want %s in it", out, err, snapshot)
	}
	console := n.vm.Console()
	if starts := strings.Count(console[strings.LastIndex(console, "U-Boot"):], "unit skerryd started"); starts != 1 {
		t.Errorf("skerryd was started %d times; want once: it waits", starts)
	}
	for _, restore := range [][]string{{"--snapshot", snapshot}, {file}} {
		if out, err := n.skerry(append([]string{"cluster", "restore", n.address, "--yes", n.address}, restore...)...); err != nil {
			t.Fatal(err)
		} else {
			t.Log(out)
		}
		n.expect(`skerry: node ready`, bootTime)
		n.want("kept", "get", "configmap", "kept")
		if out, err := n.try("", "get", "configmap", "later"); err == nil {
			t.Errorf("what was made after the snapshot is there: %s", out)
		}
	}
}

// TestDamagedJournal spoils the head of STATE's journal on a node that was turned
// off in order: the file system can't be mounted, is mended, and nothing is lost. The
// start before it, with the journal as it was, is the twin.
func TestDamagedJournal(t *testing.T) {
	n := startStateNode(t)
	n.k("create", "configmap", "kept", "--from-literal=a=b")
	mended := regexp.MustCompile(`error: .*/var.*repairing it`)
	off := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		if err := n.vm.Powerdown(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, harm := range []bool{false, true} {
		off()
		if harm {
			n.spoil(n.blocks("<8>")[:1])
		}
		n.start()
		n.want("kept", "get", "configmap", "kept")
		if console := n.vm.Console(); mended.MatchString(console) != harm {
			t.Errorf("journal spoiled: %v; the console says\n%s", harm, console)
		}
	}
}

// hog fills its own disk, at once and to the last block.
const hog = `apiVersion: v1
kind: Pod
metadata: {name: hog}
spec:
  restartPolicy: Never
  volumes: [{name: data, emptyDir: {}}]
  containers:
  - name: hog
    image: %s
    volumeMounts: [{name: data, mountPath: /data}]
    command: [/bin/busybox, sh, -c, "for s in 256m 64m 16m 4m 1m; do i=0; while busybox fallocate -l $s /data/$s.$i; do i=$((i+1)); done; done; echo full; busybox sleep 100000"]
`

// TestFullState has a pod fill STATE. The node says so, goes on taking objects,
// ends the pod, and is well again, by itself.
func TestFullState(t *testing.T) {
	n := startStateNode(t)
	if out, err := n.try(fmt.Sprintf(hog, n.image), "create", "-f", "-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	full, evicted := false, false
	for i := 0; !evicted; i++ {
		name := fmt.Sprintf("while-full-%d", i)
		n.k("create", "configmap", name)
		full = full || strings.Contains(n.problems(), "full: ")
		out := n.k("get", "pod", "hog", "-o", "jsonpath={.status.phase} {.status.reason}")
		if evicted = strings.Contains(out, "Evicted"); !evicted && i > 600 {
			t.Fatalf("the pod is still there: %s\n%s", out, n.state())
		}
	}
	if !full {
		t.Error("the status has not said that STATE is full")
	}
	n.eventually("STATE has room again", func() error {
		if got := n.problems(); strings.Contains(got, "full: ") {
			return errors.New(got)
		}
		return nil
	})
	// The kubelet takes five minutes to believe it.
	wait := []string{"wait", "--for=condition=DiskPressure=false", "node/barn-1", "--timeout=280s"}
	if _, err := n.try("", wait...); err != nil {
		n.k(wait...)
	}
}

// TestFullInodes takes the last inode of STATE while skerryd stands still, so that nobody
// is evicted, and cuts the power. At the next start init gives up those it has kept:
// skerryd writes a new file when it starts (its count of boots), and only the kubelet in it ends who has made so many.
func TestFullInodes(t *testing.T) {
	n := startStateNode(t)
	n.ops()
	n.k("create", "configmap", "kept", "--from-literal=a=b")
	if got := n.problems(); strings.Contains(got, "too many files") {
		t.Fatalf("at first: problems %s", got)
	}
	// In the background: what comes back from the shell goes through skerryd.
	n.soon(`busybox kill -STOP $(busybox pidof skerryd); busybox mkdir /proc/1/root/var/many; cd /proc/1/root/var/many; i=0
		while true >$i; do i=$((i+1)); done; busybox sync; echo "<3>no inode is left after $i files" >/dev/kmsg`)
	n.expect(`no inode is left after \d{4,} files`, 10*time.Minute)
	n.again(func() {})
	n.expect(`skerry: error: STATE has too many files: its reserve of 256 is given up`, bootTime)
	n.expect(`skerry: node ready`, bootTime)
	n.want("kept", "get", "configmap", "kept")
	if got := n.problems(); !strings.Contains(got, "too many files") {
		t.Errorf("problems: %s; want that there are too many files", got)
	}
	n.k("create", "configmap", "later", "--from-literal=a=b")
}
