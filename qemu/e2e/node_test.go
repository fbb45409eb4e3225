package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"database/sql"
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
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"skerry.internal/skerry/agent/datastore"
	"skerry.internal/skerry/agent/store"
)

func discardLogger() *log.Logger { return log.New(io.Discard, "", 0) }

// TestNode boots the image once and does to it what its users and its fate do,
// one after the other: the order matters.
func TestNode(t *testing.T) {
	n := startNode(t)
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
	step("Tools", (*node).testTools)
	step("Closed", (*node).testClosed)
	step("KillSkerryd", func(n *node) { n.testKill("skerryd", "KILL") })
	step("KillContainerd", func(n *node) { n.testKill("containerd", "KILL") })
	step("StopSkerryd", func(n *node) { n.testKill("skerryd", "STOP") })
	step("Reboot", (*node).testReboot)
	step("PowerCuts", (*node).testPowerCuts)
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

func (n *node) testWorkloads() {
	n.want(`barn-1\s+Ready\s+control-plane\s`, "get", "nodes")
	// Beside that of a node which is not Ready yet, maybe.
	n.want(`(?m)^north-barn(.*\n)*.* example\.test/dark=yes:PreferNoSchedule$`, "get", "node", "barn-1", "-o",
		`go-template={{index .metadata.labels "example.test/site"}}{{range .spec.taints}} {{.key}}={{.value}}:{{.effect}}{{"\n"}}{{end}}`)
	// 300 MiB are reserved, and kubelet keeps 100 for the moment in which it evicts.
	memory := strings.Fields(n.k("get", "node", "barn-1", "-o", "jsonpath={.status.capacity.memory} {.status.allocatable.memory}"))
	if capacity, allocatable := resource.MustParse(memory[0]), resource.MustParse(memory[1]); capacity.Value()-allocatable.Value() != 400<<20 {
		n.t.Errorf("memory that pods can have: %s of %s; want 400 MiB less", memory[1], memory[0])
	}
	if out, err := n.try(n.workload(), "apply", "-f", "-"); err != nil {
		n.t.Fatalf("apply: %v\n%s", err, out)
	}
	// kubectl wait fails at once while the object has no conditions at all.
	n.eventually("the custom resource is established", func() error {
		out, err := n.try("", "wait", "--for=condition=Established", "crd/boats.example.test", "--timeout=60s")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if out, err := n.try(`{"apiVersion":"example.test/v1","kind":"Boat","metadata":{"name":"dory"},"spec":{"sails":1}}`, "apply", "-f", "-"); err != nil {
		n.t.Errorf("apply a custom object: %v\n%s", err, out)
	}
	n.k("rollout", "status", "deployment/web", "--timeout=240s")
	n.k("rollout", "status", "daemonset/ticker", "--timeout=120s")
	n.k("wait", "--for=condition=complete", "job/visitor", "--timeout=180s")
	// Three visits: by name, by full name, by address. What came back is what
	// ConfigMap and Secret held.
	n.want(`^greengranitegreengranitegreengranite$`, "logs", "job/visitor")
	n.t.Cleanup(func() { n.try("", "delete", "pod", "sickly", "--wait=false") })
	n.restarted("sickly")
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
	m, stop := n.follow(`tick (\d+)\n`, "logs", "-f", "--tail=1", "daemonset/ticker")
	stop()
	first, err := strconv.Atoi(m[1])
	if err != nil {
		n.t.Fatal(err)
	}
	_, stop = n.follow(fmt.Sprintf(`tick %d\n`, first+5), "logs", "-f", "--tail=1", "daemonset/ticker")
	stop()

	// exec with a terminal: script gives kubectl one.
	ctx, cancel := context.WithTimeout(n.t.Context(), 2*time.Minute)
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
	n.k("cp", pod+":/there", back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		n.t.Errorf("cp there and back: %d bytes, %v; want the same %d", len(got), err, len(data))
	}

	// port-forward.
	m, stop = n.follow(`Forwarding from 127\.0\.0\.1:(\d+)`, "port-forward", "deploy/web", ":8080")
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
	"tcp 10.43.0.10:53", "tcp 127.0.0.1:10248", "tcp 127.0.0.1:10249", "tcp 127.0.0.1:10256", "tcp 169.254.20.10:53", "tcp all:10250", "tcp all:6443",
	"udp 10.43.0.10:53", "udp 169.254.20.10:53",
}

func (n *node) testClosed() {
	// Anonymous requests get the health of the API and nothing else.
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
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

// containers returns the identity and start of every container that must live on.
func (n *node) containers() string {
	n.t.Helper()
	return n.k("get", "pods", "-l", "app in (web,ticker)", "--sort-by=.metadata.name", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running.startedAt}{"\n"}{end}`)
}

// testKill sends a signal to one of init's units, waits until init has brought
// it back and the node is Ready, and compares the containers.
func (n *node) testKill(unit, signal string) {
	before := n.containers()
	if strings.Count(before, "containerd://") != 3 {
		n.t.Fatalf("containers before: %q; want three running", before)
	}
	// In the background: the signal ends the connection that carries it.
	n.must(fmt.Sprintf("(busybox sleep 1; busybox kill -%s $(busybox pidof %s)) >/dev/null 2>&1 &", signal, unit))
	n.expect(regexp.QuoteMeta("skerry: unit "+unit+" started"), 3*time.Minute)
	n.expect(regexp.QuoteMeta("skerry: unit "+unit+" ready"), bootTime)
	n.k("wait", "--for=condition=Ready", "node/barn-1", "--timeout=120s")
	n.k("rollout", "status", "deployment/web", "--timeout=120s")
	if after := n.containers(); after != before {
		n.t.Errorf("containers after %s of %s:\n%swant\n%s", signal, unit, after, before)
	}
	// kubelet's connection to containerd comes back within its back-off, which
	// tells nobody.
	n.eventually("exec works again", func() error { _, err := n.on("true"); return err })
	n.noRace()
}

// eventually tries something until it works, for at most three minutes; for what
// gives no event that could be awaited.
func (n *node) eventually(what string, try func() error) {
	n.t.Helper()
	deadline := time.Now().Add(3 * time.Minute)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%s: not within three minutes: %v\n%s", what, err, n.state())
		}
		<-time.After(500 * time.Millisecond)
	}
}

// testReboot reboots in order, through init.
func (n *node) testReboot() {
	n.must("(busybox sleep 1; busybox kill -TERM 1) >/dev/null 2>&1 &")
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
		if err == nil && out != "greengranite" {
			n.t.Fatalf("the service after a boot says %q; want greengranite", out)
		}
		return err
	})
	n.noRace() // by now exec works
}

// testPowerCuts cuts the power at random moments while objects are created, and
// looks for every object whose creation was acknowledged.
func (n *node) testPowerCuts() {
	cuts, seed := 3, uint64(time.Now().UnixNano())
	if testAll() {
		cuts = 25
	}
	if s := os.Getenv("SKERRY_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			n.t.Fatalf("SKERRY_SEED: %v", err)
		}
	}
	n.t.Logf("SKERRY_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var acknowledged []string
	for cut := range cuts {
		acknowledged = append(acknowledged, n.createUntilCut(cut, time.Duration(r.Int64N(int64(10*time.Second))))...)
		n.checkDisk(acknowledged)
		if cut == 0 {
			n.checkChecks(acknowledged)
		}
		if n.t.Failed() {
			return
		}
		n.start()
		n.everythingRuns()
		have := map[string]bool{}
		for _, name := range strings.Fields(n.k("get", "configmaps", "-o", "name")) {
			have[strings.TrimPrefix(name, "configmap/")] = true
		}
		for _, name := range acknowledged {
			if !have[name] {
				n.t.Errorf("cut %d: %s was acknowledged and is lost", cut, name)
			}
		}
	}
	if len(acknowledged) < cuts {
		n.t.Errorf("%d objects acknowledged over %d cuts: the test tried nothing", len(acknowledged), cuts)
	}
	n.t.Logf("%d cuts, %d acknowledged objects, all there", cuts, len(acknowledged))
}

// createUntilCut creates ConfigMaps from several clients until the power is
// cut, after, and returns the names whose creation was acknowledged.
func (n *node) createUntilCut(cut int, after time.Duration) []string {
	n.t.Helper()
	cfg, err := clientcmd.BuildConfigFromFlags("", n.kubeconfig)
	if err != nil {
		n.t.Fatal(err)
	}
	cfg.QPS = -1
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(n.t.Context())
	var mu sync.Mutex // guards names
	var names []string
	var wg sync.WaitGroup
	first := make(chan struct{})
	var once sync.Once
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				name := fmt.Sprintf("kept-%d-%d-%d", cut, w, i)
				if _, err := client.CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
					return // the power is gone
				}
				mu.Lock()
				names = append(names, name)
				mu.Unlock()
				once.Do(func() { close(first) })
			}
		})
	}
	select {
	case <-first:
	case <-time.After(time.Minute):
		n.t.Fatal("no object was created within a minute")
	}
	<-time.After(after) // the moment of the cut is what is random
	n.vm.Cut()
	cancel()
	wg.Wait()
	return names
}

// checkDisk reads the database from the cut disk on this machine: with the
// file system's journal replayed, the file system is sound and SQLite finds the
// database whole, and it holds what was acknowledged.
func (n *node) checkDisk(acknowledged []string) {
	n.t.Helper()
	dir := n.t.TempDir()
	defer os.RemoveAll(dir)
	db, err := n.cutDatabase(n.copyState(dir))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, name := range acknowledged {
		if !db[name] {
			n.t.Errorf("%s was acknowledged and is not in the database", name)
		}
	}
}

// lazy is what ext4 leaves to the next unmount or e2fsck: the totals in the super
// block, and the mark that the list of orphans is in use.
var lazy = regexp.MustCompile(`^(e2fsck \d.*|Pass \d.*|Free (blocks|inodes) count wrong \(.*|Feature orphan_present is set but orphan file is clean\.|(Fix|Clear)\? no|STATE: .*|)$`)

// fsckProblems is what e2fsck -n has found, but for what is lazy.
func fsckProblems(out string) string {
	if !strings.Contains(out, "Pass 5: ") {
		return "e2fsck did not get to its end:\n" + out
	}
	var problems []string
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); !lazy.MatchString(line) {
			problems = append(problems, line)
		}
	}
	return strings.Join(problems, "\n")
}

// replay takes the journal of a file system in and frees the files that were
// removed while they were open, as a mount would. It refuses whatever else
// e2fsck finds to mend.
func replay(state string) error {
	out, _ := hostCommand("e2fsck", "-p", state).CombinedOutput() // its status says what its text does
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); !replayed.MatchString(line) {
			return fmt.Errorf("replay the journal: %s\n%s", line, out)
		}
	}
	return nil
}

// replayed is what e2fsck says of a sound file system that was not unmounted;
// the backup of the super block does not know that there are orphans.
var replayed = regexp.MustCompile(`^(STATE:? (recovering journal` +
	`|primary superblock features different from backup, check forced\.` +
	`|Feature orphan_present is set but orphan file is clean\.` +
	`|(Clearing|Truncating) orphaned inode \d+ .*` +
	`|Free (blocks|inodes) count wrong \(.*` +
	`|clean, .*|\d+/\d+ files .*)|CLEARED\.|FIXED\.|)$`)

// cutDatabase replays the journal of STATE, as a mount would, refuses a file
// system in which anything is left to mend, and returns the names of the
// ConfigMaps in the database.
func (n *node) cutDatabase(state string) (map[string]bool, error) {
	n.t.Helper()
	if err := replay(state); err != nil {
		return nil, err
	}
	out, _ := hostCommand("e2fsck", "-f", "-n", state).CombinedOutput() // its status says what its text does
	if problems := fsckProblems(string(out)); problems != "" {
		return nil, fmt.Errorf("file system after its journal was replayed: %s", problems)
	}
	path := filepath.Join(filepath.Dir(state), datastore.DatabaseFile)
	for _, suffix := range []string{"", "-wal"} {
		n.debugfs(state, "dump /lib/skerry/db/"+datastore.DatabaseFile+suffix+" "+path+suffix)
	}
	// The same SQLite that wrote it reads it; it takes the log in on opening.
	if err := store.Check(n.t.Context(), path); err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite3", store.DSN(path))
	if err != nil {
		return nil, err
	}
	defer db.Close()
	rows, err := db.Query("SELECT name FROM kine WHERE name LIKE '/registry/configmaps/default/kept-%' AND deleted = 0")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	have := map[string]bool{}
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		have[strings.TrimPrefix(name, "/registry/configmaps/default/")] = true
	}
	return have, rows.Err()
}

// checkChecks shows that checkDisk would see harm: a database with noise in it,
// and a file system with noise in it.
func (n *node) checkChecks(acknowledged []string) {
	n.t.Helper()
	damage := func(blocks string) error {
		dir := n.t.TempDir()
		defer os.RemoveAll(dir)
		state := n.copyState(dir)
		if err := replay(state); err != nil { // else it would mend what the noise hits
			n.t.Fatal(err)
		}
		numbers := regexp.MustCompile(`(?m)^\d+$`).FindAllString(n.debugfs(state, blocks), -1)
		if len(numbers) == 0 {
			n.t.Fatalf("debugfs %s finds no block", blocks)
		}
		f, err := os.OpenFile(state, os.O_WRONLY, 0)
		if err != nil {
			n.t.Fatal(err)
		}
		defer f.Close()
		for _, number := range numbers {
			block, err := strconv.ParseInt(number, 10, 64)
			if err != nil {
				n.t.Fatal(err)
			}
			if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, 4096), block*4096); err != nil {
				n.t.Fatal(err)
			}
		}
		db, err := n.cutDatabase(state)
		if err == nil && len(db) < len(acknowledged) {
			err = fmt.Errorf("%d of %d objects", len(db), len(acknowledged))
		}
		return err
	}
	// Of the database each page but the first, which may be newer in the log.
	var pages strings.Builder
	for page := 1; page < 200; page++ {
		fmt.Fprintf(&pages, "bmap /lib/skerry/db/%s %d\n", datastore.DatabaseFile, page)
	}
	if err := damage(pages.String()); err == nil {
		n.t.Error("noise in the database was not seen")
	} else {
		n.t.Logf("noise in the database: %.200s", err)
	}
	if err := damage("bmap /lib/skerry 0"); err == nil {
		n.t.Error("noise in a directory was not seen")
	} else {
		n.t.Logf("noise in a directory: %.200s", err)
	}
}
