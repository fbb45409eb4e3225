//go:build full

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/qemu"
)

// TestBadDisk: a disk that answers nothing for half a minute is waited for, and
// no container pays for it; nor for one that can't be read for as long. A disk that refuses writes is named on the console; when
// the power comes back on a good disk, whatever was acknowledged is there.
func TestBadDisk(t *testing.T) {
	n := startNode(t, withStatus, func(c *qemu.Config) { c.Faults = true })
	o := n.operator()
	n.startOne()
	n.ops()
	client := n.client()
	var acked []string
	create := func(name string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		_, err := client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err == nil {
			acked = append(acked, name)
		}
		return err
	}
	before := n.container("one")

	// Half a minute in which the disk answers nothing.
	stall := func(stalled bool) {
		t.Helper()
		if err := n.vm.StallDisk(t.Context(), stalled); err != nil {
			t.Fatal(err)
		}
	}
	if err := create("before-stall"); err != nil {
		t.Fatal(err)
	}
	stall(true)
	over, ended := make(chan struct{}), make(chan int, 1)
	halt := sync.OnceValue(func() int { close(over); return <-ended })
	t.Cleanup(func() { halt() })
	go func() {
		for i := 0; ; i++ {
			select {
			case <-over:
				ended <- i
				return
			default:
				if err := create(fmt.Sprintf("in-stall-%d", i)); err != nil {
					t.Logf("a write that the stall caught: %v", err) // into a time limit: it was not acknowledged
				}
			}
		}
	}()
	// This long is what is tested; the status API is asked in its midst.
	begin := time.Now()
	<-time.After(10 * time.Second)
	o.answers()
	if took := time.Since(begin); took > 25*time.Second {
		t.Errorf("the status API answered %.0f s into the stall, asked after 10", took.Seconds())
	}
	<-time.After(30*time.Second - time.Since(begin))
	n.goesOn()
	stall(false)
	// One request still gets through a stalled disk; a quiet node takes ten objects a second.
	if i := halt(); i > 5 {
		t.Errorf("%d objects were created in a stall of 30 s: the disk was not stalled", i)
	}
	n.eventually("objects can be created after the stall", func() error { return create(fmt.Sprintf("after-stall-%d", time.Now().UnixNano())) })
	n.k("wait", "--for=condition=Ready", "node/barn-1", "--timeout=180s")
	if after := n.container("one"); after != before {
		t.Errorf("the container after a stall: %q; want %q as before", after, before)
	}

	// Half a minute in which every read fails: what is in memory goes on. Slot B was
	// never read, so it can't be in memory.
	fromSlotB := func(block int) (string, error) {
		return n.on(fmt.Sprintf("busybox dd if=/proc/1/root/dev/vda of=/dev/null bs=4096 count=1 skip=%d", boards.SlotBStart/4096+block))
	}
	if out, err := fromSlotB(10000); err != nil {
		t.Fatalf("read a disk that is well: %v: %s", err, out)
	}
	if err := n.vm.FailDisk(t.Context(), qemu.Fault{Kinds: []qemu.IOKind{qemu.Reads}}); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	o.answers()
	if out, err := fromSlotB(20000); err == nil || !strings.Contains(out, "nput/output error") && !strings.Contains(out, "I/O error") {
		t.Errorf("read a disk that can't be read: %v: %s; want an I/O error", err, out)
	}
	if out, err := n.try("", "get", "configmap", "before-stall", "-o", "name"); err != nil {
		t.Errorf("read an object while the disk can't be read: %v: %s", err, out)
	}
	if err := create("unreadable"); err != nil {
		t.Logf("create an object while the disk can't be read: %v", err)
	}
	<-time.After(30*time.Second - time.Since(begin))
	n.goesOn()
	if err := n.vm.FailDisk(t.Context(), qemu.Fault{}); err != nil {
		t.Fatal(err)
	}
	n.eventually("objects can be created when the disk can be read again", func() error { return create(fmt.Sprintf("readable-%d", time.Now().UnixNano())) })
	n.k("wait", "--for=condition=Ready", "node/barn-1", "--timeout=180s")
	if after := n.container("one"); after != before {
		t.Errorf("the container after failing reads: %q; want %q as before", after, before)
	}

	// Then every write fails.
	if got := o.wrongWith("STATE"); got != "" {
		t.Errorf("the status of a node whose disk is well says of STATE %q", got)
	}
	if err := n.vm.FailDisk(t.Context(), qemu.Fault{Kinds: []qemu.IOKind{qemu.Writes, qemu.Flushes, qemu.Discards}}); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := create(fmt.Sprintf("on-bad-disk-%d", i)); err == nil {
			t.Error("an object was acknowledged while every write to the disk failed")
		} else {
			t.Log("on a disk that refuses writes: ", err)
		}
	}
	if out, err := n.try("", "get", "configmap", "before-stall", "-o", "name"); err != nil {
		t.Errorf("read an object on a disk that refuses writes: %v: %s", err, out)
	}
	// skerryd and init find out each for itself.
	n.eventually("both say that the disk refuses writes", func() error {
		for _, want := range []string{"skerry: error: the disk failed the database", "skerry: error: STATE can't be written: "} {
			if !strings.Contains(n.vm.Console(), want) {
				return fmt.Errorf("the console does not say %q", want)
			}
		}
		return nil
	})
	n.goesOn()
	if got := o.wrongWith("STATE"); !strings.Contains(got, "read-only") && !strings.Contains(got, "nothing can be written") {
		t.Errorf("the status of a node whose disk refuses writes says of STATE %q; want that it can't be written", got)
	}

	n.vm.Cut()
	n.start() // its disk is well
	n.k("wait", "--for=condition=Ready", "pod/one", "--timeout=240s")
	have := strings.Fields(n.k("get", "configmaps", "-o", "name"))
	for _, name := range acked {
		if !slices.Contains(have, "configmap/"+name) {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	if err := create("on-good-disk"); err != nil {
		t.Errorf("create an object on the disk that is well again: %v", err)
	}
}

// answers wants the status API to tell of this node, within two minutes.
func (o *operator) answers() {
	o.t.Helper()
	begin := time.Now()
	if st := o.status(); st.Node.Name != "barn-1" || len(st.Units) == 0 {
		o.t.Errorf("status = %+v; want barn-1's, with its units", st)
	}
	o.t.Logf("the status API answers after %.1f s", time.Since(begin).Seconds())
}

// wrongWith is what the status says is wrong there.
func (o *operator) wrongWith(where string) string {
	o.t.Helper()
	var all []string
	for _, p := range o.status().Problems {
		if p.Where == where {
			all = append(all, p.What)
		}
	}
	return strings.Join(all, "; ")
}

// goesOn wants the node to run on as it is: no new boot, no panic.
func (n *node) goesOn() {
	n.t.Helper()
	console := n.vm.Console()
	if n.vm.PID() == 0 || strings.Count(console, "skerry: slot a: starting") != 1 || strings.Contains(console, "Kernel panic") {
		n.t.Fatalf("the node has gone down:\n%s", console[max(0, len(console)-3000):])
	}
}

// podOne is a pod that does nothing, for long.
func (n *node) podOne() string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"one"},"spec":{"terminationGracePeriodSeconds":0,
		"containers":[{"name":"main","image":%q,"args":["sleep","1000000"]}]}}`, n.image)
}

func (n *node) startOne() {
	n.t.Helper()
	if out, err := n.try(n.podOne(), "apply", "-f", "-"); err != nil {
		n.t.Fatalf("apply: %v\n%s", err, out)
	}
	n.k("wait", "--for=condition=Ready", "pod/one", "--timeout=240s")
}

// container tells one container of a pod from the next.
func (n *node) container(pod string) string {
	n.t.Helper()
	return n.k("get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}")
}
