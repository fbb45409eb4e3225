package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/imagebuild/image"
	"skerry.internal/skerry/qemu"
)

func discardLogger() *log.Logger { return log.New(io.Discard, "", 0) }

// TestNode boots the image once and does to it what its users and its fate do,
// one after the other: the order matters.
func TestNode(t *testing.T) { testNode(t, arm64) }

func testNode(t *testing.T, x target) {
	img := x.image(t)
	described := description(t, img)
	asDescribed(t, img, described)
	defer asDescribed(t, img, described) // nor has any of this written into the file
	n := startNodeOf(t, x, withStatus, func(c *qemu.Config) {
		put := c.Firmware
		c.Firmware = func(files map[string][]byte) error {
			err := put(files)
			files[config.FileName] = append(files[config.FileName], "reserved: {memory: 300Mi}\nmaxPods: 30\n"...)
			return err
		}
	})
	step := func(name string, f func(*node)) {
		if t.Failed() {
			return
		}
		begin := time.Now()
		t.Run(name, func(t *testing.T) {
			on := *n
			on.t = t
			f(&on)
		})
		t.Logf("%s: %.0f s", name, time.Since(begin).Seconds())
	}
	step("Workloads", (*node).testWorkloads)
	step("Reserved", (*node).testReserved)
	step("Tools", (*node).testTools)
	step("Closed", (*node).testClosed)
	step("KillSkerryd", func(n *node) { n.testKill("skerryd", "KILL") })
	step("KillContainerd", func(n *node) { n.testKill("containerd", "KILL") })
	step("StopSkerryd", func(n *node) { n.testKill("skerryd", "STOP") })
	step("Status", (*node).testStatus)
	step("Reboot", (*node).testReboot)
	step("PowerCuts", (*node).testPowerCuts)
}

// asDescribed wants an image, bit for bit, to be the file that make image has made
// and described.
func asDescribed(t *testing.T, path string, want image.Description) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.Image.SHA256 || n != want.Image.Size || n == 0 {
		t.Fatalf("%s: sha256 %s, %d bytes; want %s, %d bytes", path, got, n, want.Image.SHA256, want.Image.Size)
	}
}

// description reads what make image says of an image.
func description(t *testing.T, path string) image.Description {
	t.Helper()
	data, err := os.ReadFile(strings.TrimSuffix(path, ".img") + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var d image.Description
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// workload reads testdata/workload.yaml.
func (n *node) workload() string {
	n.t.Helper()
	data, err := os.ReadFile("testdata/workload.yaml")
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.ReplaceAll(string(data), "IMAGE", n.image)
}

// testReserved: pods can't have the 300 MiB, nor the 100 that kubelet keeps for the moment in
// which it evicts, and the kernel keeps the 300 for init's units. As many pods may run as skerry.yaml says.
func (n *node) testReserved() {
	memory := strings.Fields(n.k("get", "node", "barn-1", "-o", "jsonpath={.status.capacity.memory} {.status.allocatable.memory}"))
	if capacity, allocatable := resource.MustParse(memory[0]), resource.MustParse(memory[1]); capacity.Value()-allocatable.Value() != 400<<20 {
		n.t.Errorf("memory that pods can have: %s of %s; want 400 MiB less", memory[1], memory[0])
	}
	n.want(`^30$`, "get", "node", "barn-1", "-o", "jsonpath={.status.allocatable.pods}")
	if got := strings.Fields(n.must("cd /proc/1/root/sys/fs/cgroup/skerry && busybox cat memory.min containerd/memory.min skerryd/memory.min")); !slices.Equal(got, []string{"314572800", "314572800", "314572800"}) {
		n.t.Errorf("memory kept for the units, and for each: %s; want 300 MiB", got)
	}
}

func (n *node) testWorkloads() {
	n.want(`barn-1\s+Ready\s+control-plane\s`, "get", "nodes")
	// Beside that of a node which is not Ready yet, maybe.
	n.want(`(?m)^north-barn(.*\n)*.* example\.test/dark=yes:PreferNoSchedule$`, "get", "node", "barn-1", "-o",
		`go-template={{index .metadata.labels "example.test/site"}}{{range .spec.taints}} {{.key}}={{.value}}:{{.effect}}{{"\n"}}{{end}}`)
	// kubectl has limits of its own, 32 seconds for the API's description, and no patience.
	n.eventually("the workload is applied", func() error {
		out, err := n.try(n.workload(), "apply", "-f", "-")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	// kubectl wait fails at once while the object has no conditions at all.
	n.eventually("the custom resource is established", func() error {
		out, err := n.try("", "wait", "--for=condition=Established", "crd/boats.example.test", "--timeout=60s")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	// The API server may need a moment more until it serves what is established.
	n.eventually("a custom object is applied", func() error {
		out, err := n.try(`{"apiVersion":"example.test/v1","kind":"Boat","metadata":{"name":"dory"},"spec":{"sails":1}}`, "apply", "-f", "-")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	n.k("rollout", "status", "deployment/web", "--timeout=240s")
	n.k("rollout", "status", "daemonset/ticker", "--timeout=120s")
	n.k("wait", "--for=condition=complete", "job/visitor", "--timeout=180s")
	// Three visits: by name, by full name, by address. What came back is what
	// ConfigMap and Secret held.
	n.want(`^greengranitegreengranitegreengranite$`, "logs", "job/visitor")
	n.restarted("sickly")
	n.k("delete", "pod", "sickly", "--wait=false") // it would go on for ever
	n.k("wait", "--for=condition=Ready", "pod/ops", "--timeout=60s")
}

// restarted waits until the kubelet has restarted the pod's container.
func (n *node) restarted(pod string) {
	n.t.Helper()
	_, stop := n.follow(`(?m)^[1-9]`, "get", "pod", pod, "--watch", "-o", `jsonpath={.status.containerStatuses[0].restartCount}{"\n"}`)
	stop()
}

func (n *node) testTools() {
	// logs -f goes on while the container does.
	_, stop := n.follow(`(tick \d+\n){6}`, "logs", "-f", "--tail=1", "daemonset/ticker")
	stop()

	// exec with a terminal: script gives kubectl one.
	ctx, cancel := context.WithTimeout(n.t.Context(), n.limit(2*time.Minute))
	defer cancel()
	kubectl := n.command(ctx, "exec", "-it", "deploy/web", "--", "/bin/busybox", "sh", "-c", "tty; echo status $((6*7))")
	tty := exec.CommandContext(ctx, "script", "-qec", strings.Join(quote(kubectl.Args), " "), "/dev/null")
	tty.Env = kubectl.Env
	out, err := tty.CombinedOutput()
	if err != nil || !regexp.MustCompile(`/dev/pts/\d+(.|\n)*status 42`).Match(out) {
		n.t.Errorf("exec -it: %v, %q; want a terminal and 42", err, out)
	}

	// cp, there and back.
	data := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{7}).Read(data)
	there, back := filepath.Join(n.home, "there"), filepath.Join(n.home, "back")
	if err := os.WriteFile(there, data, 0o600); err != nil {
		n.t.Fatal(err)
	}
	pod := strings.Fields(n.k("get", "pods", "-l", "app=web", "-o", "name"))[0]
	pod = strings.TrimPrefix(pod, "pod/")
	n.k("cp", there, pod+":/there")
	n.eventually("cp back", func() error { // see "kubectl cp's connection may break" in docs/known-faults.md
		out, err := n.try("", "cp", pod+":/there", back)
		if err != nil && !strings.Contains(out, "websocket: close 1006") {
			n.t.Fatalf("kubectl cp: %v\n%s", err, out)
		}
		return err
	})
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		n.t.Errorf("cp there and back: %d bytes, %v; want the same %d", len(got), err, len(data))
	}

	// port-forward.
	m, stop := n.follow(`Forwarding from 127\.0\.0\.1:(\d+)`, "port-forward", "deploy/web", ":8080")
	resp, err := http.Get("http://127.0.0.1:" + m[1] + "/both")
	if err != nil {
		n.t.Error(err)
	} else {
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(body) != "greengranite" {
			n.t.Errorf("through port-forward: %q", body)
		}
	}
	stop()

	// debug: another container beside the pod's own, in its namespaces.
	n.k("debug", pod, "--image="+n.image, "--target=main", "--container=dbg", "--", "/bin/busybox", "sh", "-c", "busybox ps; busybox wget -qO- http://127.0.0.1:8080/both")
	n.k("wait", "--for=jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}=0", "pod/"+pod, "--timeout=120s")
	n.want(`httpd(.|\n)*greengranite`, "logs", pod, "-c", "dbg")

	n.want(`FIELD: replicas`, "explain", "deployment.spec.replicas")
	n.want(`dory`, "get", "boats")
}

func quote(args []string) []string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return quoted
}

// listening are the ports that the node itself serves, and on which addresses.
// 0.0.0.0 and :: are "all"; ports above 32767 that the kernel chose for
// loopback are not listed.
var listening = []string{
	"tcp 10.43.0.10:53", "tcp 127.0.0.1:10248", "tcp 127.0.0.1:10249", "tcp 127.0.0.1:10256", "tcp 169.254.20.10:53", "tcp all:10250", "tcp all:6442", "tcp all:6443",
	"udp 10.43.0.10:53", "udp 169.254.20.10:53", "udp all:5353",
}

func (n *node) testClosed() {
	// Anonymous requests get the health of the API and nothing else.
	client := http.Client{Timeout: n.limit(30 * time.Second), Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/healthz": 200, "/version": 401, "/api/v1/nodes": 401, "/openapi/v2": 401, "/metrics": 401} {
		resp, err := client.Get(fmt.Sprintf("https://127.0.0.1:%d%s", n.vm.Port(6443), path))
		if err != nil {
			n.t.Error(err)
			continue
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			n.t.Errorf("anonymous GET %s = %d; want %d", path, resp.StatusCode, want)
		}
	}
	// The kubelet refuses anonymous requests as well.
	if out, _ := n.on("busybox wget --no-check-certificate -qO- https://127.0.0.1:10250/pods 2>&1"); !strings.Contains(out, "401") && !strings.Contains(out, "Unauthorized") {
		n.t.Errorf("anonymous request to the kubelet: %q; want 401", out)
	}

	table, err := n.on("cat /proc/net/tcp /proc/net/tcp6; echo udp; cat /proc/net/udp /proc/net/udp6")
	if err != nil {
		n.t.Fatal(err, table)
	}
	if got := parseListening(table); !slices.Equal(got, listening) {
		n.t.Errorf("listening ports:\n got %q\nwant %q", got, listening)
	}
	// The root can't be written, and is under verity.
	if out, err := n.on("busybox touch /proc/1/root/usr/x"); err == nil || !strings.Contains(out, "Read-only file system") {
		n.t.Errorf("write to the root: %v, %q; want it refused", err, out)
	}
	if out, err := n.on("busybox grep ' / ' /proc/1/mounts"); err != nil || !regexp.MustCompile(`/dev/(dm-\d+|mapper/\S+) / (squashfs|erofs) ro`).MatchString(out) {
		n.t.Errorf("root is mounted as %q, %v; want device mapper, read-only", out, err)
	}
}

// parseListening reads /proc/net/{tcp,tcp6}, a line "udp", and udp, udp6
// (proc(5)): listening TCP sockets, and UDP sockets with no peer.
func parseListening(table string) []string {
	proto, found := "tcp", map[string]bool{}
	for _, line := range strings.Split(table, "\n") {
		f := strings.Fields(line)
		if len(f) == 1 && f[0] == "udp" {
			proto = "udp"
		}
		if len(f) < 4 || proto == "tcp" && f[3] != "0A" || proto == "udp" && f[3] != "07" {
			continue
		}
		addr, portHex, ok := strings.Cut(f[1], ":")
		port, err := strconv.ParseUint(portHex, 16, 16)
		if !ok || err != nil {
			continue
		}
		host := "all"
		if strings.Trim(addr, "0") != "" {
			ip := make(net.IP, len(addr)/2)
			for i := range ip {
				// Words are in the byte order of the machine, little-endian.
				b, err := strconv.ParseUint(addr[2*i:2*i+2], 16, 8)
				if err != nil {
					return nil
				}
				ip[i/4*4+3-i%4] = byte(b)
			}
			host = ip.String()
		}
		if host == "127.0.0.1" && port > 32767 {
			continue // containerd's streaming server
		}
		found[fmt.Sprintf("%s %s:%d", proto, host, port)] = true
	}
	var list []string
	for s := range found {
		list = append(list, s)
	}
	slices.Sort(list)
	return list
}

func TestParseListening(t *testing.T) {
	const table = `  sl  local_address rem_address   st
   0: 00000000:192B 00000000:0000 0A 0
   1: 0100007F:2808 00000000:0000 0A 0
   2: 0F02000A:C000 0202000A:0050 01 0
udp
   0: 0A002B0A:0035 00000000:0000 07 0`
	if got, want := parseListening(table), []string{"tcp 127.0.0.1:10248", "tcp all:6443", "udp 10.43.0.10:53"}; !slices.Equal(got, want) {
		t.Errorf("parseListening() = %q; want %q", got, want)
	}
}

// containers returns the identity and start of every container that must live on,
// as Kubernetes tells them, and of every process that a shim has started, pauses
// among them, as the kernel does (proc(5), stat), but for the one that asks and for
// the OCI runtime, which lives while a container or a command starts or ends.
func (n *node) containers() string {
	n.t.Helper()
	processes := n.must(`busybox cat /proc/[0-9]*/stat 2>/dev/null | busybox awk -v me=$$ -v shims=" $(busybox pidof containerd-shim-runc-v2) " '
		$1 != me && $2 != "(crun)" && index(shims, " " $4 " ") { print $1, $2, "started", $22 }' | busybox sort`)
	return processes + n.k("get", "pods", "-l", "app in (web,ticker)", "--sort-by=.metadata.name", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running.startedAt}{"\n"}{end}`)
}

// testKill sends a signal to one of init's units, waits until init has brought
// it back and the node is Ready, and compares the containers.
func (n *node) testKill(unit, signal string) {
	before := n.containers()
	// Four pods: web twice, ticker, ops.
	if strings.Count(before, "containerd://") != 3 || strings.Count(before, "started") < 8 || strings.Count(before, "(httpd)") != 2 {
		n.t.Fatalf("containers before: %q; want three running, and eight processes or more, two of them httpd", before)
	}
	n.soon(fmt.Sprintf("busybox kill -%s $(busybox pidof %s)", signal, unit))
	n.expect(regexp.QuoteMeta("skerry: unit "+unit+" started"), 3*time.Minute)
	n.expect(regexp.QuoteMeta("skerry: unit "+unit+" ready"), bootTime)
	n.k("wait", "--for=condition=Ready", "node/barn-1", "--timeout=120s")
	n.k("rollout", "status", "deployment/web", "--timeout=120s")
	// kubelet's connection to containerd comes back within its back-off, which
	// tells nobody.
	n.eventually("exec works again", func() error { _, err := n.on("true"); return err })
	if after := n.containers(); after != before {
		n.t.Errorf("containers after %s of %s:\n%swant\n%s", signal, unit, after, before)
	}
	n.proxied()
	n.noRace()
}

// proxied wants kube-proxy to know the services of before its start: it may leave
// their rules as they are until it has written some of its own, so a new service's
// are awaited first.
func (n *node) proxied() {
	n.t.Helper()
	n.k("expose", "deployment", "web", "--name=fresh", "--port=80", "--target-port=8080")
	defer n.k("delete", "service", "fresh")
	ask := func(service string) error {
		out, err := n.on(fmt.Sprintf("busybox wget -T 10 -qO- http://%s.default.svc.cluster.local/both", service))
		if err == nil && out != "greengranite" {
			err = errors.New("want greengranite")
		}
		if err != nil {
			return fmt.Errorf("%s says %q: %w", service, out, err)
		}
		return nil
	}
	n.eventually("a service that is made after a start answers", func() error { return ask("fresh") })
	if err := ask("web"); err != nil {
		n.t.Errorf("a service of before kube-proxy's start: %v", err)
	}
}

// eventually tries something until it works, for at most three minutes; for what
// gives no event that could be awaited.
func (n *node) eventually(what string, try func() error) {
	n.t.Helper()
	n.within(3*time.Minute, what, try)
}

// within tries until it succeeds, and says after the limit what was wrong and since when.
func (n *node) within(limit time.Duration, what string, try func() error) {
	n.t.Helper()
	begin := time.Now()
	var said []string
	for {
		err := try()
		if err == nil {
			return
		}
		took := time.Since(begin)
		if line := err.Error(); len(said) == 0 || !strings.HasSuffix(said[len(said)-1], line) {
			said = append(said, fmt.Sprintf("after %.0f s: %s", took.Seconds(), line))
		}
		if took > n.limit(limit) {
			n.t.Fatalf("%s: not within %v: %v\n%s\n%s", what, n.limit(limit), err, strings.Join(said[max(0, len(said)-20):], "\n"), n.state())
		}
		<-time.After(500 * time.Millisecond)
	}
}

// testReboot reboots in order, through init.
func (n *node) testReboot() {
	n.soon("busybox kill -TERM 1")
	n.expect(`U-Boot`, 3*time.Minute)
	n.expect(`skerry: node ready`, bootTime)
	n.everythingRuns()
}

// noRace looks for what kubelet says when the controller-manager, in the same
// process, has taken its place in the CSI plugin's package variables. It tries
// for minutes, so a node may have become Ready by luck.
func (n *node) noRace() {
	n.t.Helper()
	const log = "/proc/1/root/var/log/skerry/skerryd.log"
	if lines := n.must("busybox cat " + log + " | busybox wc -l"); strings.TrimSpace(lines) == "0" {
		n.t.Errorf("%s is empty: this test looks at the wrong place", log)
	}
	if said := n.must("busybox grep 'resource name may not be empty' " + log + "; true"); said != "" {
		n.t.Errorf("kubelet and controller-manager got into each other's way:\n%s", said)
	}
}

// everythingRuns waits until what was deployed runs again.
func (n *node) everythingRuns() {
	n.t.Helper()
	// On a busy machine kubectl's ten seconds for a handshake may not do right after a start.
	n.eventually("the API answers", func() error {
		out, err := n.try("", "get", "--raw", "/readyz")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	n.k("wait", "--for=condition=Ready", "node/barn-1", "--timeout=120s")
	n.k("rollout", "status", "deployment/web", "--timeout=300s")
	n.k("rollout", "status", "daemonset/ticker", "--timeout=300s")
	n.k("wait", "--for=condition=Ready", "pod/ops", "--timeout=180s")
	n.want(`dory`, "get", "boats", "-o", "name")
	// From the node's own network, by a name of the cluster. What kubectl says of
	// the pods may be from before the boot until kubelet has looked at each, so
	// the service itself is asked until it answers.
	n.eventually("the service answers after a boot", func() error {
		out, err := n.on("busybox wget -T 10 -qO- http://web.default.svc.cluster.local/both")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		if out != "greengranite" {
			n.t.Fatalf("the service after a boot says %q; want greengranite", out)
		}
		return nil
	})
	n.noRace() // by now exec works
}
