//go:build full

package e2e

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/qemu"
)

// TestFaults does to a node what bad programs do. The node must stay Ready or
// become so by itself, its status API must answer meanwhile, and the pods that do no
// harm must run on.
func TestFaults(t *testing.T) {
	// A small STATE, so that it is soon full.
	n := startNode(t, withStatus, func(c *qemu.Config) { c.DiskSize = 2 << 30 })
	o := n.operator()
	n.testWorkloads()
	n.k("wait", "--for=delete", "pod/sickly", "--timeout=120s")
	before := n.containers()
	if strings.Count(before, "started") < 8 {
		t.Fatalf("containers before: %q; want eight processes or more", before)
	}
	step := func(name string, f func(*operator)) {
		t.Run(name, func(t *testing.T) {
			on := *n
			on.t = t
			defer func() {
				if t.Failed() { // what comes after shall not suffer for it
					on.try("", "delete", "replicasets,pods", "-l", "app in (harm, moth)", "--force", "--grace-period=0", "--timeout=300s")
					before = on.containers()
				}
			}()
			units := on.units()
			begin := time.Now()
			f(&operator{node: &on, program: o.program, address: o.address})
			on.k("wait", "--for=condition=Ready", "node/barn-1", "--timeout=480s")
			// Beside them there may be what is left of the harmful ones.
			after := on.containers()
			for line := range strings.Lines(before) {
				if !strings.Contains(after, line) {
					t.Errorf("containers:\n%swant among them\n%s", after, line)
				}
			}
			ends := strings.HasSuffix(name, "Containerd") || strings.HasSuffix(name, "Skerryd")
			if after := on.units(); !ends && after != units {
				t.Errorf("units: %s; want %s, those from before", after, units)
			}
			on.everythingRuns()
			t.Logf("%.0f s", time.Since(begin).Seconds())
		})
	}
	step("Memory", func(n *operator) {
		// It asks for all there is, as fast as it can. It is the limit of all pods that ends it, or the kubelet that is
		// faster, before the machine's memory is gone: the kernel counts for a group only what reaches that group's own limit.
		limits := func() int {
			return n.number("busybox awk '/^oom / { print $2 }' /proc/1/root/sys/fs/cgroup/kubepods/memory.events")
		}
		before := limits()
		n.run("glutton", "busybox tail /dev/zero", "")
		ended := ""
		n.eventually("glutton ends", func() error {
			n.answers()
			// A busy machine may answer kubectl too late meanwhile.
			out, err := n.try("", "get", "pod", "glutton", "-o", "jsonpath={.status.phase} {.status.reason} {.status.containerStatuses[0].state.terminated.reason}")
			if err != nil || !strings.HasPrefix(out, "Failed") {
				return fmt.Errorf("it runs on: %q, %v", out, err)
			}
			ended = out
			return nil
		})
		n.t.Logf("glutton: %s", ended)
		evicted, killed := strings.Contains(ended, "Evicted"), strings.Contains(ended, "OOMKilled")
		if !evicted && !killed || !evicted && limits() == before || strings.Contains(n.vm.Console(), "] Out of memory: ") {
			n.t.Errorf("the pod has ended with %q; want the pods' own limit to be reached, or kubelet to have seen it, before the machine has no memory:\n%s", ended, n.state())
		}
		n.k("delete", "pod", "glutton", "--wait=false")
		if evicted {
			n.k("wait", "--for=condition=MemoryPressure=true", "node/barn-1", "--timeout=120s")
		}
		n.k("wait", "--for=condition=MemoryPressure=false", "node/barn-1", "--timeout=480s") // no pod is let in before
	})
	step("Processes", func(n *operator) {
		n.run("rabbit", "while :; do busybox sleep 100000 & done", "")
		n.eventually("the pod can't fork any more", func() error { return n.says("rabbit", "can't fork") })
		n.answers()
		n.serves()
		n.run("neighbour", "true", "")
		n.k("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/neighbour", "--timeout=120s")
		n.k("delete", "pod", "rabbit", "neighbour", "--force", "--grace-period=0")
	})
	step("Disk", func(n *operator) {
		n.run("hoarder", "busybox dd if=/dev/zero of=/fill bs=1M; busybox sleep 100000", "")
		n.evicted("hoarder")
	})
	step("Inodes", func(n *operator) {
		// Not by ":", with which a shell ends when it can't write.
		n.run("collector", "busybox mkdir /d; cd /d; i=0; while true >$i; do i=$((i+1)); done; busybox sleep 100000", "")
		n.evicted("collector")
	})
	step("CrashLoop", func(n *operator) {
		if out, err := n.try(fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"name":"moths","labels":{"app":"moth"}},"spec":{"replicas":200,"selector":{"matchLabels":{"app":"moth"}},
			"template":{"metadata":{"labels":{"app":"moth"}},"spec":{"terminationGracePeriodSeconds":1,"containers":[{"name":"main","image":%q,"args":["sh","-c","exit 1"]}]}}}}`, n.image), "apply", "-f", "-"); err != nil {
			n.t.Fatalf("apply: %v\n%s", err, out)
		}
		n.within(20*time.Minute, "many of them have crashed more than once", func() error {
			out, err := n.try("", "get", "pods", "-l", "app=moth", "-o", `jsonpath={range .items[*]}{.status.containerStatuses[0].restartCount}{"\n"}{end}`)
			if crashed := len(regexp.MustCompile(`(?m)^([2-9]|\d\d)`).FindAllString(out, -1)); err != nil || crashed < 10 {
				return fmt.Errorf("%d pods have, %v", crashed, err)
			}
			return nil
		})
		// As many as a node of 2 GiB takes; the rest wait.
		n.want(`^20$`, "get", "node", "barn-1", "-o", "jsonpath={.status.allocatable.pods}")
		n.eventually("as many pods are on the node", func() error {
			bound := 0
			for _, phase := range strings.Fields(n.k("get", "pods", "-A", "-o", `jsonpath={range .items[?(@.spec.nodeName)]}{.status.phase}{"\n"}{end}`)) {
				if phase == "Pending" || phase == "Running" {
					bound++
				}
			}
			if bound != 20 {
				return fmt.Errorf("%d are; want 20", bound)
			}
			return nil
		})
		n.answers()
		n.serves()
		n.k("wait", "--for=condition=Ready", "node/barn-1", "--timeout=480s")
		n.k("delete", "replicaset", "moths", "--cascade=foreground", "--timeout=600s")
	})
	step("StopContainerd", func(n *operator) {
		// In the background: what comes back from the shell goes through containerd.
		n.soon("busybox kill -STOP $(busybox pidof containerd)")
		<-time.After(3 * time.Second) // nobody says that it is stopped
		n.answers()
		n.expect(`skerry: error: unit containerd: no sign of life`, 3*time.Minute)
		n.expect(`skerry: unit containerd ready`, bootTime)
		n.eventually("exec works again", func() error { _, err := n.on("true"); return err })
	})
	step("StarveSkerryd", func(n *operator) { n.starve("skerryd") })
	step("StarveContainerd", func(n *operator) { n.starve("containerd") })
	step("KillShim", func(n *operator) {
		n.victim()
		n.must("busybox kill -KILL " + n.shimOf("31337"))
		n.answers()
		n.restartedAs("victim", 1)
		n.k("delete", "pod", "victim", "--timeout=120s")
	})
	step("StarveShim", func(n *operator) {
		n.victim()
		group := n.lean("shim")
		n.must("echo " + n.shimOf("31337") + " >" + group + "/cgroup.procs")
		if out, err := n.try("", "exec", "victim", "--", "/bin/busybox", "true"); err == nil {
			n.t.Errorf("a command ran under a shim without memory: %s", out)
		}
		n.answers()
		n.restartedAs("victim", 1)
		n.wasLean(group)
		n.k("delete", "pod", "victim", "--timeout=120s")
	})
	step("Init", func(n *operator) {
		n.must("busybox kill -KILL 1; busybox kill -STOP 1; busybox kill -0 1")
		n.answers()
	})
	step("StopShim", func(n *operator) {
		n.victim()
		n.must("busybox kill -STOP " + n.shimOf("31337"))
		n.answers()
		n.expect(`skerry: error: unit containerd: its process containerd-shim\S* \(\d+\) was stopped; it goes on`, 3*time.Minute)
		n.k("delete", "pod", "victim", "--timeout=120s")
	})
}

// serves wants the pods that do no harm to answer meanwhile, by their service's name.
func (n *operator) serves() {
	n.t.Helper()
	n.eventually("the service answers meanwhile", func() error {
		if out, err := n.on("busybox wget -T 10 -qO- http://web.default.svc.cluster.local/both"); err != nil || out != "greengranite" {
			return fmt.Errorf("it says %q, %v; want greengranite", out, err)
		}
		return nil
	})
}

// starve takes a unit's process to a group that has no room for anything new, as if it
// had grown over a limit: the kernel ends it, and init starts it again. The shims, which
// share the unit's own group, are left out of this.
func (n *operator) starve(unit string) {
	n.t.Helper()
	before := n.unit(unit)
	group := n.lean(unit)
	// Its end takes the connection to the shell with it.
	n.soon("echo $(busybox pidof " + unit + ") >" + group + "/cgroup.procs")
	n.expect(`skerry: error: unit `+unit+`: .*next start in`, 2*time.Minute)
	n.answers()
	n.within(bootTime, unit+" has been started again", func() error { // on a slow machine skerryd takes its time
		if u := n.unit(unit); u.State != "ready" || u.PID == before.PID || !strings.Contains(u.LastExit, "SIGKILL") {
			return fmt.Errorf("it is %+v", u)
		}
		return nil
	})
	n.eventually("exec works again", func() error { _, err := n.on("true"); return err })
	n.wasLean(group)
}

// lean makes a group for processes that shall get no more memory.
func (n *node) lean(name string) string {
	n.t.Helper()
	group := "/proc/1/root/sys/fs/cgroup/skerry/lean-" + name
	n.must("busybox mkdir " + group + " && echo 64K >" + group + "/memory.max")
	return group
}

// wasLean wants the kernel to have ended something in that group.
func (n *node) wasLean(group string) {
	n.t.Helper()
	n.must("busybox grep -x 'oom_kill [1-9][0-9]*' " + group + "/memory.events")
}

// number is what a shell line on the node prints.
func (n *node) number(line string) int {
	n.t.Helper()
	value, err := strconv.Atoi(strings.TrimSpace(n.must(line)))
	if err != nil {
		n.t.Fatalf("%s: %v", line, err)
	}
	return value
}

// victim is a pod that does nothing, for 31337 seconds.
func (n *node) victim() {
	n.t.Helper()
	n.run("victim", "exec busybox sleep 31337", "Always")
	n.k("wait", "--for=condition=Ready", "pod/victim", "--timeout=120s")
}

// shimOf is the shim of the container whose program sleeps for that long.
func (n *node) shimOf(seconds string) string {
	n.t.Helper()
	shim := strings.TrimSpace(n.must(`exec 2>/dev/null; for p in /proc/[0-9]*; do case "$(busybox tr '\000' ' ' <$p/cmdline 2>/dev/null)" in
		*"sleep ` + seconds + ` ") busybox awk '/^PPid/ {print $2}' $p/status;; esac; done`))
	if name := n.must("busybox cat /proc/" + shim + "/comm"); !strings.HasPrefix(name, "containerd-shim") {
		n.t.Fatalf("process %s is %q; want a shim", shim, name)
	}
	return shim
}

// restartedAs waits until a container has been restarted that often and runs.
func (n *node) restartedAs(pod string, times int) {
	n.t.Helper()
	n.k("wait", fmt.Sprintf("--for=jsonpath={.status.containerStatuses[0].restartCount}=%d", times), "pod/"+pod, "--timeout=300s")
	n.k("wait", "--for=condition=Ready", "pod/"+pod, "--timeout=120s")
}

// units are the processes of init's units.
func (n *node) units() string {
	n.t.Helper()
	return strings.TrimSpace(n.must("busybox pidof skerryd; busybox pidof containerd"))
}

// pod is a harmful one.
func (n *node) pod(name, line, restart string) string {
	if restart == "" {
		restart = "Never"
	}
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"labels":{"app":"harm"}},"spec":{"restartPolicy":%q,"terminationGracePeriodSeconds":1,`+
		`"containers":[{"name":"main","image":%q,"args":["sh","-c",%q]}]}}`, name, restart, n.image, line)
}

func (n *node) run(name, line, restart string) {
	n.t.Helper()
	if out, err := n.try(n.pod(name, line, restart), "apply", "-f", "-"); err != nil {
		n.t.Fatalf("apply %s: %v\n%s", name, err, out)
	}
}

func (n *node) says(pod, text string) error {
	out, err := n.try("", "logs", "--tail=20", pod)
	if err != nil || !strings.Contains(out, text) {
		return fmt.Errorf("%s says %q, %w; want %q", pod, out, err, text)
	}
	return nil
}

// evicted waits until kubelet has ended the pod for what it took of the disk, and
// until the pressure is over: five minutes after it has gone, by upstream's default.
func (n *operator) evicted(pod string) {
	n.t.Helper()
	n.k("wait", "--for=condition=DiskPressure", "node/barn-1", "--timeout=600s")
	n.answers()
	n.serves()
	n.k("wait", "--for=jsonpath={.status.reason}=Evicted", "pod/"+pod, "--timeout=600s")
	n.k("delete", "pod", pod)
	n.k("wait", "--for=condition=DiskPressure=false", "node/barn-1", "--timeout=480s")
}
