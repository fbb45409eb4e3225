package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/cluster"
	"skerry.internal/skerry/imagebuild/deb"
	"skerry.internal/skerry/imagebuild/fetch"
	"skerry.internal/skerry/imagebuild/ociimage"
	"skerry.internal/skerry/qemu"
)

// testAll says that the full counts are wanted.
func testAll() bool { return os.Getenv("SKERRY_TEST_ALL") != "" }

// bootTime bounds the way from power-on to node Ready on a slow, busy machine.
const bootTime = 8 * time.Minute

// node is one booted image.
type node struct {
	target
	t          testing.TB
	vm         *qemu.VM
	kubeconfig string
	kubectl    string
	image      string // a busybox, in the registry on the host
	registry   string // that registry's port
	home       string
}

// bootImage is the image that most tests boot.
func bootImage(t testing.TB) string { return arm64.image(t) }

// startNode boots the image as a server of a new cluster, with a registry on
// the host that it may pull from, and waits until the node is Ready.
func startNode(t testing.TB, change ...func(*qemu.Config)) *node {
	t.Helper()
	return startNodeOf(t, arm64, change...)
}

func startNodeOf(t testing.TB, x target, change ...func(*qemu.Config)) *node {
	t.Helper()
	board, machine := x.find(t)
	img := x.image(t)
	n := &node{target: x, t: t, home: t.TempDir()}
	n.kubectl = kubectl(t)

	// QEMU's user network shows the host's loopback as 10.0.2.2.
	port := serveRegistry(t)
	n.registry = port
	host := "10.0.2.2:" + port
	pushBusybox(t, board.Arch, "127.0.0.1:"+port+"/busybox:1")
	n.image = host + "/busybox:1"

	c, err := cluster.Create(n.home, "e2e", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := c.Bundle(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Appendf(nil, "hostname: barn-1\nregistries:\n- host: %s\n  mirrors: [\"http://%s\"]\n  username: barn-1\n  password: \"%s\"\n"+
		"labels: {example.test/site: north-barn}\ntaints: [example.test/dark=yes:PreferNoSchedule]\n", host, host, pullPassword)
	cfg := qemu.Config{
		Dir: filepath.Join(n.home, "vm"), Machine: machine, Image: img,
		DiskSize: 3 << 30, Memory: 2048, SMP: 2, Forwards: map[int]int{6443: 0},
		Firmware: func(files map[string][]byte) error {
			files[provision.FileName], files["skerry.yaml"] = bundle, config
			return nil
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	if n.vm, err = qemu.New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.vm.Cut)
	begin := time.Now()
	n.start()
	t.Logf("node Ready %.0f s after power-on", time.Since(begin).Seconds())
	data, err := c.Kubeconfig(fmt.Sprintf("https://127.0.0.1:%d", n.vm.Port(6443)), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	n.kubeconfig = filepath.Join(n.home, "kubeconfig")
	if err := os.WriteFile(n.kubeconfig, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// start powers the machine on and waits until its node is Ready.
func (n *node) start() {
	n.t.Helper()
	if err := n.vm.Start(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
	n.expect(`skerry: node ready`, bootTime)
}

// expect waits for a line on the console.
func (n *node) expect(pattern string, limit time.Duration) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), n.limit(limit))
	defer cancel()
	if _, err := n.vm.Expect(ctx, pattern); err != nil {
		n.t.Fatal(err)
	}
}

// kubectl builds the upstream kubectl of the version in go.mod.
func kubectl(t testing.TB) string {
	t.Helper()
	build, err := qemu.BuildDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(build, "kubectl")
	if out, err := exec.Command("go", "build", "-o", path, "k8s.io/kubernetes/cmd/kubectl").CombinedOutput(); err != nil {
		t.Fatalf("build kubectl: %v\n%s", err, out)
	}
	return path
}

// pullPassword is what the node's skerry.yaml has for barn-1.
const pullPassword = "only for pulling: #1"

// serveRegistry serves a registry to which anybody may push, and from which
// only barn-1 may pull, with a token that it asks for with its password.
func serveRegistry(t testing.TB) (port string) {
	t.Helper()
	backend := registry.New(registry.Logger(discardLogger()))
	token := rand.Text()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		switch {
		case r.URL.Path == "/token" && user == "barn-1" && password == pullPassword:
			fmt.Fprintf(w, `{"token": %q}`, token)
		case r.URL.Path == "/token" || r.Method == http.MethodGet && r.URL.Path != "/v2/" && r.Header.Get("Authorization") != "Bearer "+token:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="e2e"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		default:
			backend.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	_, port, err = net.SplitHostPort(u.Host)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// busybox is Debian's static one for an architecture, of the cache or the archive.
func busybox(t testing.TB, arch *boards.Arch) []byte {
	t.Helper()
	cache, err := fetch.Open()
	if err != nil {
		t.Fatal(err)
	}
	const packages = "../../rootfs/packages-test.yaml"
	list, err := deb.ReadList(packages)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := deb.ReadLock(deb.LockFile(packages, arch.Debian))
	if err != nil {
		t.Fatal(err)
	}
	archive, err := deb.NewArchive(cache)
	if err != nil {
		t.Fatal(err)
	}
	set, err := archive.Fetch(t.Context(), list, lock)
	if err != nil {
		t.Fatal(err)
	}
	var busybox []byte
	path, err := set.Path("busybox-static")
	if err != nil {
		t.Fatal(err)
	}
	for f, err := range deb.Unpack(path) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Path == "usr/bin/busybox" {
			if busybox, err = io.ReadAll(f.Content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(busybox) == 0 {
		t.Fatal("busybox-static holds no usr/bin/busybox")
	}
	return busybox
}

// pushBusybox makes an image of busybox, with other files beside it, and pushes it.
func pushBusybox(t testing.TB, arch *boards.Arch, ref string, beside ...ociimage.File) {
	t.Helper()
	img, err := ociimage.Build(append(beside, ociimage.File{Path: "/bin/busybox", Mode: 0o755, Data: busybox(t, arch)}),
		ociimage.Config{Arch: arch.GOARCH, Entrypoint: []string{"/bin/busybox"}, Env: []string{"PATH=/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
}

// command is kubectl with this node's kubeconfig.
func (n *node) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, n.kubectl, append([]string{"--kubeconfig=" + n.kubeconfig}, n.patient(args)...)...)
	cmd.Env = append(os.Environ(), "HOME="+n.home) // its discovery cache
	return cmd
}

// client talks to the node's API without a limit of its own.
func (n *node) client() kubernetes.Interface {
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
	return client
}

// try runs kubectl for at most eleven minutes and returns all it prints.
func (n *node) try(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(n.t.Context(), n.limit(11*time.Minute))
	defer cancel()
	for begin := time.Now(); ; {
		cmd := n.command(ctx, args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		// kubectl gives a TLS handshake ten seconds, which an emulated machine on a busy host may need
		// while its pods start, and has no flag for more. What needed that connection was not asked, so it is asked again.
		if err == nil || time.Since(begin) > n.limit(time.Minute) || !strings.Contains(string(out), "net/http: TLS handshake timeout") {
			return string(out), err
		}
	}
}

// k runs kubectl, which must succeed.
func (n *node) k(args ...string) string {
	n.t.Helper()
	out, err := n.try("", args...)
	if err != nil {
		n.t.Fatalf("kubectl %s: %v\n%s%s", strings.Join(args, " "), err, out, n.state())
	}
	return out
}

// want runs kubectl, whose output must match.
func (n *node) want(pattern string, args ...string) {
	n.t.Helper()
	if out := n.k(args...); !regexp.MustCompile(pattern).MatchString(out) {
		n.t.Errorf("kubectl %s: got %q, want %q", strings.Join(args, " "), out, pattern)
	}
}

// state is what somebody would look at first after a failure.
func (n *node) state() string {
	out, _ := n.try("", "get", "pods,jobs", "-A", "-o", "wide")
	events, _ := n.try("", "get", "events", "-A", "--sort-by=.lastTimestamp")
	console := n.vm.Console()
	return fmt.Sprintf("--- pods\n%s--- events\n%s--- console\n%s", out, events, console[max(0, len(console)-2000):])
}

// on runs a shell line in the namespaces of the node itself, through the pod
// "ops"; the image has no shell of its own. The shell tells how the line ended, since
// kubectl says success when its connection went away before (docs/known-faults.md).
func (n *node) on(line string) (string, error) {
	mark := rand.Text() + " " // which no output of the line itself ends like
	out, err := n.try("", "exec", "ops", "--", "/bin/busybox", "sh", "-c", "exec 2>&1\n"+line+"\necho "+mark+"$?")
	// The last one: ps shows the line itself.
	if at := strings.LastIndex(out, mark); at >= 0 {
		// What comes after it is kubectl's: the line may have stopped who serves its connection.
		if status, _, whole := strings.Cut(out[at+len(mark):], "\n"); whole && status == "0" {
			return out[:at], nil
		} else if whole {
			return out[:at], fmt.Errorf("status %s", status)
		}
	}
	if err == nil {
		err = errors.New("the connection ended before the command")
	}
	return out, err
}

// soon runs a line on the node in the background, a moment later: it ends, or stops, what the
// connection that carries it goes through.
func (n *node) soon(line string) {
	n.t.Helper()
	n.must(fmt.Sprintf("(busybox sleep %.0f; %s) >/dev/null 2>&1 &", n.limit(time.Second).Seconds(), line))
}

// follow starts a kubectl that goes on, and waits for a line of its output.
func (n *node) follow(pattern string, args ...string) ([]string, func()) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(n.t.Context())
	cmd := n.command(ctx, args...)
	var out bytes.Buffer
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { err := cmd.Wait(); w.CloseWithError(errors.Join(io.EOF, err)); ended <- err }()
	stop := func() { cancel(); <-ended }
	timer := time.AfterFunc(n.limit(2*time.Minute), cancel)
	defer timer.Stop()
	re := regexp.MustCompile(pattern)
	buf := make([]byte, 4096)
	for {
		c, err := r.Read(buf)
		out.Write(buf[:c])
		if m := re.FindStringSubmatch(out.String()); m != nil {
			go io.Copy(io.Discard, r)
			return m, stop
		}
		if err != nil {
			cancel()
			n.t.Fatalf("kubectl %s: ended without %q: %v\n%s", strings.Join(args, " "), pattern, err, out.String())
		}
	}
}

// copyState copies STATE of the machine, which must be off, to a sparse file in dir.
func (n *node) copyState(dir string) string {
	n.t.Helper()
	raw, state := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "state.raw")
	if err := n.vm.CopyDisk(n.t.Context(), raw); err != nil {
		n.t.Fatal(err)
	}
	defer os.Remove(raw)
	n.host("dd", "if="+raw, "of="+state, "bs=1M", fmt.Sprintf("skip=%d", boards.StateStart/boards.MiB), "conv=sparse", "status=none")
	return state
}

// debugfs runs a request on a file system and returns what it prints.
func (n *node) debugfs(state, request string) string {
	n.t.Helper()
	script := filepath.Join(filepath.Dir(state), "request")
	if err := os.WriteFile(script, []byte(request+"\n"), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return n.host("debugfs", "-f", script, state)
}

// host runs a program on this machine, which must succeed.
func (n *node) host(name string, args ...string) string {
	n.t.Helper()
	out, err := hostCommand(name, args...).CombinedOutput()
	if err != nil {
		n.t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// hostCommand is a program of this machine, also one for its administrator.
func hostCommand(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	if cmd.Err != nil {
		cmd = exec.Command("/usr/sbin/"+name, args...)
	}
	return cmd
}
