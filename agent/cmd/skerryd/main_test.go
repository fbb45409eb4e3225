package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/agent/datastore"
	"skerry.internal/skerry/agent/pki"
	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/agent/store"
)

// The test binary is skerryd itself when this is set, so that the program is
// linked once.
const runAsSkerryd = "SKERRYD_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runAsSkerryd) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// server is a skerryd process on this machine, control plane only.
type server struct {
	t          *testing.T
	dir, run   string
	port       int
	cmd        *exec.Cmd
	log        *bytes.Buffer
	done       chan error
	kubeconfig string
	kubectl    string
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, dir: t.TempDir()}
	var err error
	if s.run, err = os.MkdirTemp("", "skerryd"); err != nil { // short: sockets
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(s.run) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	l.Close()

	now := time.Now()
	root, err := pki.NewRoot("test", now)
	if err != nil {
		t.Fatal(err)
	}
	inter, err := root.NewIntermediate("node", now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := pki.KeyPEM(inter.Key)
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := (&provision.Bundle{Cluster: "test", Role: provision.RoleServer, Created: now,
		CACert: pki.CertPEM(root.Cert), IntermediateCert: pki.CertPEM(inter.Cert), IntermediateKey: key}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, provision.FileName), bundle, 0o600); err != nil {
		t.Fatal(err)
	}
	admin := t.TempDir()
	if _, err := root.Ensure(admin, "admin", pki.Leaf{CommonName: "admin", Organization: []string{"system:masters"}}, now); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(admin, "ca.crt")
	if err := os.WriteFile(ca, pki.CertPEM(root.Cert), 0o600); err != nil {
		t.Fatal(err)
	}
	s.kubeconfig = filepath.Join(admin, "kubeconfig")
	if err := os.WriteFile(s.kubeconfig, fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","current-context":"t",
"clusters":[{"name":"t","cluster":{"server":"https://127.0.0.1:%d","certificate-authority":%q}}],
"users":[{"name":"t","user":{"client-certificate":%q,"client-key":%q}}],
"contexts":[{"name":"t","context":{"cluster":"t","user":"t"}}]}`, s.port, ca, filepath.Join(admin, "admin.crt"), filepath.Join(admin, "admin.key")), 0o600); err != nil {
		t.Fatal(err)
	}
	s.kubectl = buildKubectl(t)
	t.Cleanup(func() { s.kill(syscall.SIGKILL) })
	return s
}

// building keeps tests that run beside each other from writing the same file.
var building sync.Mutex

// buildKubectl builds the upstream kubectl of the same version, from the
// module cache, into the build directory.
func buildKubectl(t *testing.T) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	path, err := filepath.Abs("../../../build/kubectl")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", path, "k8s.io/kubernetes/cmd/kubectl").CombinedOutput(); err != nil {
		t.Fatalf("build kubectl: %v\n%s", err, out)
	}
	return path
}

// start runs skerryd and waits until it says over sd_notify that it is ready.
func (s *server) start() {
	s.t.Helper()
	s.startUntil("READY=1")
}

// startUntil waits for another text, and returns the message that holds it.
func (s *server) startUntil(text string) (said string) {
	s.t.Helper()
	socket := filepath.Join(s.run, "notify")
	os.Remove(socket)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		s.t.Fatal(err)
	}
	defer l.Close()
	s.log = &bytes.Buffer{}
	s.cmd = exec.Command(os.Args[0], "--control-plane-only", "--data-dir="+s.dir, "--run-dir="+s.run, "--config="+filepath.Join(s.dir, "skerry.yaml"),
		"--node-ip=192.0.2.1", fmt.Sprintf("--port=%d", s.port))
	s.cmd.Env = append(os.Environ(), runAsSkerryd+"=1", "NOTIFY_SOCKET="+socket)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan error) { done <- cmd.Wait(); close(done) }(s.cmd, s.done)
	ready := make(chan string, 1)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := l.Read(buf)
			if err != nil {
				return
			}
			if strings.Contains(string(buf[:n]), text) {
				ready <- string(buf[:n])
				return
			}
		}
	}()
	select {
	case said = <-ready:
	case err := <-s.done:
		s.t.Fatalf("skerryd ended before it was ready: %v\n%s", err, tail(s.log.String()))
	case <-time.After(2 * time.Minute):
		s.kill(syscall.SIGKILL)
		s.t.Fatalf("skerryd: no %s after 2 minutes\n%s", text, tail(s.log.String()))
	}
	return said
}

// kill sends sig and waits for the end.
func (s *server) kill(sig syscall.Signal) {
	if s.cmd == nil || s.done == nil {
		return
	}
	s.cmd.Process.Signal(sig)
	select {
	case <-s.done:
	case <-time.After(time.Minute):
		s.cmd.Process.Kill()
		<-s.done
		s.t.Errorf("skerryd did not end within a minute of %v\n%s", sig, tail(s.log.String()))
	}
	s.done = nil
}

func tail(s string) string {
	lines := strings.Split(s, "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

// run runs kubectl and returns what it prints.
func (s *server) try(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.kubectl, append([]string{"--kubeconfig=" + s.kubeconfig}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+s.run) // its discovery cache
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *server) want(pattern, stdin string, args ...string) {
	s.t.Helper()
	out, err := s.try(stdin, args...)
	if err != nil || !regexp.MustCompile(pattern).MatchString(out) {
		s.t.Errorf("kubectl %s = %v, %s; want %q", strings.Join(args, " "), err, out, pattern)
	}
}

func TestControlPlane(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.start()

	s.want(`Server Version: v1\.37\.`, "", "version")
	s.want(`created`, "", "create", "configmap", "kept", "--from-literal=a=b")
	// The controller-manager works: it makes pods, accounts and tokens.
	s.want(`created`, "", "create", "deployment", "web", "--image=example.test/web", "--replicas=2")
	s.want(`condition met`, "", "wait", "--for=jsonpath={.status.replicas}=2", "deployment/web", "--timeout=60s")
	s.want(`default`, "", "get", "serviceaccount", "default")
	// The scheduler works: it says why it can't place them.
	s.want(`condition met`, "", "wait", "--for=condition=PodScheduled=false", "pod", "-l", "app=web", "--timeout=60s")
	s.want(`no nodes available`, "", "get", "pods", "-l", "app=web", "-o", `jsonpath={.items[*].status.conditions[*].message}`)
	// OpenAPI is served.
	s.want(`FIELD: replicas`, "", "explain", "deployment.spec.replicas")
	// A custom resource.
	s.want(`created`, `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"boats.example.test"},
"spec":{"group":"example.test","scope":"Namespaced","names":{"plural":"boats","kind":"Boat"},"versions":[{"name":"v1","served":true,"storage":true,
"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","properties":{"sails":{"type":"integer","maximum":5}}}}}}}]}}`, "apply", "-f", "-")
	s.want(`condition met`, "", "wait", "--for=condition=Established", "crd/boats.example.test", "--timeout=30s")
	s.want(`created`, `{"apiVersion":"example.test/v1","kind":"Boat","metadata":{"name":"dory"},"spec":{"sails":1}}`, "apply", "-f", "-")
	if out, err := s.try(`{"apiVersion":"example.test/v1","kind":"Boat","metadata":{"name":"wreck"},"spec":{"sails":9}}`, "apply", "-f", "-"); err == nil {
		t.Errorf("an object against its schema was accepted: %s", out)
	}

	// RBAC: an account can do what it was given, and nothing else.
	s.want(`created`, "", "create", "serviceaccount", "reader")
	s.want(`created`, "", "create", "rolebinding", "reader", "--clusterrole=view", "--serviceaccount=default:reader")
	token, err := s.try("", "create", "token", "reader")
	if err != nil {
		t.Fatal(token, err)
	}
	s.want(`^yes`, "", "auth", "can-i", "list", "pods", "--as=system:serviceaccount:default:reader")
	for path, want := range map[string]int{"/api/v1/namespaces/default/pods": 200, "/api/v1/nodes": 403, "/api/v1/namespaces/default/secrets": 403} {
		if got := s.get(path, strings.TrimSpace(token)); got != want {
			t.Errorf("GET %s with the reader's token = %d; want %d", path, got, want)
		}
	}
	// Anonymous requests reach the health endpoints and nothing else.
	for path, want := range map[string]int{"/livez": 200, "/readyz": 200, "/healthz": 200, "/version": 401, "/api": 401, "/openapi/v2": 401, "/metrics": 401, "/": 401} {
		if got := s.get(path, ""); got != want {
			t.Errorf("anonymous GET %s = %d; want %d", path, got, want)
		}
	}

	s.want(`FailedScheduling`, "", "get", "events")
	s.want(`lease`, "", "get", "leases", "-A", "-o", "name")
	// kill -9: everything acknowledged is there again.
	s.want(`created`, "", "create", "configmap", "last", "--from-literal=a=b")
	s.kill(syscall.SIGKILL)
	if err := store.Check(t.Context(), filepath.Join(s.dir, "db", datastore.DatabaseFile)); err != nil {
		t.Error(err)
	}
	s.onlyDurable()
	s.start()
	s.want(`kept(.|\n)*last`, "", "get", "configmap", "-o", "name")
	s.want(`dory`, "", "get", "boats", "-o", "name")

	// SIGTERM ends it cleanly.
	s.kill(syscall.SIGTERM)
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit status after SIGTERM = %d; want 0\n%s", code, tail(s.log.String()))
	}
}

// onlyDurable wants no Lease and no Event in the database, which would be written
// all day for their sake.
func (s *server) onlyDurable() {
	s.t.Helper()
	db, err := sql.Open("sqlite3", store.DSN(filepath.Join(s.dir, "db", datastore.DatabaseFile)))
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	for prefix, want := range map[string]bool{"/registry/leases/": false, "/registry/events/": false, "/registry/pods/": true} {
		var n int
		if err := db.QueryRow("SELECT count(*) FROM kine WHERE name LIKE ?", prefix+"%").Scan(&n); err != nil {
			s.t.Fatal(err)
		}
		if (n > 0) != want {
			s.t.Errorf("the database holds %d rows of %s; want some: %v", n, prefix, want)
		}
	}
}

// get makes one request, with a bearer token or as nobody.
func (s *server) get(path, token string) int {
	s.t.Helper()
	c := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(s.t.Context(), "GET", fmt.Sprintf("https://127.0.0.1:%d%s", s.port, path), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// What is wrong is said in one line, with the right exit status.
func TestStartErrors(t *testing.T) {
	empty := t.TempDir()
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, provision.FileName), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--no-such-flag"}, 2, "unknown flag"},
		{[]string{"surplus"}, 2, "unexpected argument"},
		{[]string{"--node-ip=127.0.0.1"}, 2, "loopback"},
		{[]string{"--data-dir=" + empty}, 1, "skerry cluster create"},
		{[]string{"--data-dir=" + damaged}, 1, "parse provisioning bundle"},
	} {
		cmd := exec.Command(os.Args[0], tt.args...)
		cmd.Env = append(os.Environ(), runAsSkerryd+"=1")
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != tt.code || !strings.Contains(string(out), tt.want) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("skerryd %v: exit %d, %q; want %d and one line with %q", tt.args, got, out, tt.code, tt.want)
		}
	}
}

// Another address ends the unit, and so the process: init starts it again with
// the new one. The same address, written again, does not.
func TestFollowAddress(t *testing.T) {
	n := &node{options: options{RunDir: t.TempDir()}}
	write := func(address string) {
		t.Helper()
		if err := atomicfile.WriteFile(filepath.Join(n.RunDir, networkFile), fmt.Appendf(nil, `{"interface":"eth0","address":%q}`, address), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- n.followAddress(t.Context(), func() { close(ready) }) }()
	for _, step := range []string{"", "192.0.2.5/24", "192.0.2.5/16", "192.0.2.6/24"} {
		if step != "" {
			write(step)
		}
		if step == "192.0.2.5/24" {
			select {
			case <-ready:
			case <-time.After(time.Minute):
				t.Fatal("an address was not seen within a minute")
			}
		}
	}
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "from 192.0.2.5 to 192.0.2.6") {
			t.Errorf("followAddress() = %v; want the change named", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("a changed address was not seen within a minute")
	}
}

// Certificates that a jump of the clock made invalid are made anew, and that is
// said; a second look finds nothing to do.
func TestCertificatesAfterClockJump(t *testing.T) {
	now := time.Now()
	root, err := pki.NewRoot("test", now)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{options: options{DataDir: t.TempDir(), NodeIP: net.IPv4(192, 0, 2, 1), Port: 6443}, name: "a", caFile: "/ca.crt"}
	if n.authority, err = root.NewIntermediate("node", now); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		at   time.Time
		want bool
	}{
		{now, true}, {now, false}, {now.Add(time.Hour), false}, {now.AddDate(3, 0, 0), true}, {now.AddDate(3, 0, 0), false}, {now, true},
	} {
		if changed, err := n.ensureFiles(tt.at); err != nil || changed != tt.want {
			t.Errorf("ensureFiles(%s) = %v, %v; want %v", tt.at, changed, err, tt.want)
		}
	}
}

// Where another node has this one's name, the API server's certificate is good for
// the name that it has instead, and nothing is started anew for it: not when it takes
// the name, nor when it has its own again.
func TestOtherName(t *testing.T) {
	now := time.Now()
	root, err := pki.NewRoot("test", now)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{options: options{DataDir: t.TempDir(), RunDir: t.TempDir(), NodeIP: net.IPv4(192, 0, 2, 1), Port: 6443}, name: "barn", caFile: "/ca.crt"}
	if n.authority, err = root.NewIntermediate("node", now); err != nil {
		t.Fatal(err)
	}
	if _, err := n.ensureFiles(now); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		told string
		want bool // that barn-2.local is in the certificate
	}{{"barn\n", false}, {"no name!\n", false}, {"barn-2\n", true}, {"barn\n", true}} {
		if err := os.WriteFile(filepath.Join(n.RunDir, api.LocalNameFile), []byte(tt.told), 0o644); err != nil {
			t.Fatal(err)
		}
		if changed, err := n.ensureFiles(now); changed || err != nil {
			t.Errorf("%q: ensureFiles() = %v, %v; want that nothing need start anew", tt.told, changed, err)
		}
		pair, err := tls.LoadX509KeyPair(n.files.ServingCert, n.files.ServingKey)
		if err != nil {
			t.Fatal(err)
		}
		if got := pair.Leaf.VerifyHostname("barn-2.local") == nil; got != tt.want {
			t.Errorf("%q: the certificate is for %q", tt.told, pair.Leaf.DNSNames)
		}
		if err := pair.Leaf.VerifyHostname("barn.local"); err != nil {
			t.Error(err)
		}
	}
}
