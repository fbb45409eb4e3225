package status

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/pki"
)

// served is a server on loopback and what it was asked to do.
type served struct {
	addr  string
	root  *pki.Authority
	inter *pki.Authority
	now   time.Time // of the node; the tests' own clock is the real one

	mu      sync.Mutex // guards what follows
	asked   []string
	console []string
}

func (s *served) note(list *[]string, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*list = append(*list, fmt.Sprintf(format, args...))
}

func (s *served) notes() (asked, console string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.asked, " "), strings.Join(s.console, "\n")
}

func authority(t *testing.T, now time.Time) (root, inter *pki.Authority) {
	t.Helper()
	root, err := pki.NewRoot("home", now)
	if err != nil {
		t.Fatal(err)
	}
	if inter, err = root.NewIntermediate("node", now); err != nil {
		t.Fatal(err)
	}
	return root, inter
}

func serve(t *testing.T, change func(*Config)) *served {
	t.Helper()
	s := &served{now: time.Now()}
	s.root, s.inter = authority(t, time.Now().Add(-24*time.Hour))
	cfg := Config{
		Root: s.root.Cert, Authority: s.inter, Now: func() time.Time { return s.now },
		Names:  func() ([]string, []net.IP) { return []string{"barn-1"}, []net.IP{net.IPv4(127, 0, 0, 1)} },
		Status: func() api.Status { return api.Status{Node: api.Node{Name: "barn-1"}, Slot: "a"} },
		Units:  []string{"skerryd"},
		UnitLog: func(ctx context.Context, w io.Writer, unit string, lines int, follow bool) error {
			fmt.Fprintf(w, "%s %d\n", unit, lines)
			if follow {
				<-ctx.Done()
			}
			return nil
		},
		Reboot: func(off bool) error { s.note(&s.asked, "off=%v", off); return nil },
		Reset:  func() error { s.note(&s.asked, "reset"); return nil },
		Extra: map[string]http.Handler{
			"GET /v1/extra": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "extra") }),
			"GET /v1/panic": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("ouch") }),
		},
		Printf: func(f string, a ...any) { s.note(&s.console, f, a...) },
		Errorf: func(f string, a ...any) { s.note(&s.console, f, a...) },
	}
	if change != nil {
		change(&cfg)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- New(cfg).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve() = %v after its end; want nil", err)
		}
	})
	return s
}

// client has a certificate that a has issued at some time.
func (s *served) client(t *testing.T, a *pki.Authority, at time.Time, organizations ...string) *http.Client {
	t.Helper()
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "barn-1.local"}
	config.RootCAs.AddCert(s.root.Cert)
	if a != nil {
		certPEM, keyPEM, err := a.Issue(pki.Leaf{CommonName: "someone", Organization: organizations}, at)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			t.Fatal(err)
		}
		// Not Certificates: a client would hold back one that was not asked for.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	}
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func (s *served) do(c *http.Client, method, path, body string) (int, string, error) {
	r, err := http.NewRequest(method, "https://"+s.addr+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	resp, err := c.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(data), err
}

// Who gets in, and how far.
func TestClients(t *testing.T) {
	s := serve(t, nil)
	other, otherInter := authority(t, time.Now())
	now := time.Now()
	for _, tt := range []struct {
		name          string
		client        *http.Client
		status, admin int // 0: not even a connection
	}{
		{"admin by the root", s.client(t, s.root, now, Admins), 200, 200},
		{"admin by the node's authority", s.client(t, s.inter, now, Admins), 200, 200},
		{"another client of the cluster", s.client(t, s.inter, now, "system:nodes"), 200, 403},
		{"no organization", s.client(t, s.root, now), 200, 403},
		{"no certificate", s.client(t, nil, now), 0, 0},
		{"another cluster", s.client(t, other, now, Admins), 0, 0},
		{"another cluster's node", s.client(t, otherInter, now, Admins), 0, 0},
		{"expired", s.client(t, s.root, now.Add(-2*pki.LeafLife), Admins), 0, 0},
		{"newer than the node's clock", s.client(t, s.root, now.Add(40*24*time.Hour), Admins), 200, 200},
	} {
		for path, want := range map[string]int{"/v1/status": tt.status, "/v1/logs/skerryd": tt.admin, "/v1/extra": tt.admin} {
			code, body, err := s.do(tt.client, "GET", path, "")
			if code != want || (err != nil) != (want == 0) {
				t.Errorf("%s: GET %s = %d, %q, %v; want %d", tt.name, path, code, body, err, want)
			}
		}
	}
}

// A server's certificate must not let anybody in as a client.
func TestServerCertificateIsNoClient(t *testing.T) {
	s := serve(t, nil)
	c := s.client(t, nil, s.now)
	certPEM, keyPEM, err := s.inter.Issue(pki.Leaf{CommonName: "x", Organization: []string{Admins}, Server: true}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	c.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	if code, _, err := s.do(c, "GET", "/v1/status", ""); err == nil {
		t.Errorf("GET with a server's certificate = %d; want no connection", code)
	}
}

func TestOldTLS(t *testing.T) {
	s := serve(t, nil)
	c := s.client(t, s.root, s.now, Admins)
	c.Transport.(*http.Transport).TLSClientConfig.MaxVersion = tls.VersionTLS12
	if code, _, err := s.do(c, "GET", "/v1/status", ""); err == nil {
		t.Errorf("GET with TLS 1.2 = %d; want no connection", code)
	}
}

func TestRequests(t *testing.T) {
	for _, tt := range []struct {
		name, method, path, body string
		code                     int
		want                     string // in the answer
		asked                    string
	}{
		{"status", "GET", "/v1/status", "", 200, `"name":"barn-1"`, ""},
		{"log", "GET", "/v1/logs/skerryd?lines=7", "", 200, "skerryd 7\n", ""},
		{"log, no number of lines", "GET", "/v1/logs/skerryd", "", 200, "skerryd 100\n", ""},
		{"log, wrong lines", "GET", "/v1/logs/skerryd?lines=-7", "", 400, "want a number", ""},
		{"log, wrong follow", "GET", "/v1/logs/skerryd?follow=maybe", "", 400, "want true or false", ""},
		{"log of nothing", "GET", "/v1/logs/init", "", 404, "want one of", ""},
		{"log of another folder", "GET", "/v1/logs/..%2f..%2fshadow", "", 404, "want one of", ""},
		{"reboot", "POST", "/v1/reboot", `{"mode":"reboot"}`, 202, "{}", "off=false"},
		{"power off", "POST", "/v1/reboot", `{"mode":"poweroff"}`, 202, "{}", "off=true"},
		{"reboot, wrong mode", "POST", "/v1/reboot", `{"mode":"explode"}`, 400, "want reboot or poweroff", ""},
		{"reboot, no body", "POST", "/v1/reboot", "", 400, "JSON", ""},
		{"reboot, long body", "POST", "/v1/reboot", `{"mode":"` + strings.Repeat("x", 2*maxBody) + `"}`, 400, "too large", ""},
		{"reboot by GET", "GET", "/v1/reboot", "", 405, "", ""},
		{"reset", "POST", "/v1/reset", `{"confirm":"barn-1"}`, 202, "{}", "reset"},
		{"reset of another", "POST", "/v1/reset", `{"confirm":"barn-2"}`, 400, "barn-1", ""},
		{"reset unconfirmed", "POST", "/v1/reset", `{}`, 400, "barn-1", ""},
		{"nothing", "GET", "/v1/nothing", "", 404, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, nil)
			code, body, err := s.do(s.client(t, s.root, s.now, Admins), tt.method, tt.path, tt.body)
			if err != nil || code != tt.code || !strings.Contains(body, tt.want) {
				t.Errorf("%s %s = %d, %q, %v; want %d and %q", tt.method, tt.path, code, body, err, tt.code, tt.want)
			}
			if asked, _ := s.notes(); asked != tt.asked {
				t.Errorf("%s %s asked for %q; want %q", tt.method, tt.path, asked, tt.asked)
			}
		})
	}
}

// A handler's panic costs its request and nothing else.
func TestPanic(t *testing.T) {
	s := serve(t, nil)
	c := s.client(t, s.root, s.now, Admins)
	if code, body, err := s.do(c, "GET", "/v1/panic", ""); err != nil || code != 500 || !strings.Contains(body, "ouch") {
		t.Errorf("GET of a handler that panics = %d, %q, %v; want 500", code, body, err)
	}
	if _, console := s.notes(); !strings.Contains(console, "panic: ouch") {
		t.Errorf("console = %q; want the panic", console)
	}
	if code, _, err := s.do(c, "GET", "/v1/status", ""); err != nil || code != 200 {
		t.Errorf("GET after a panic = %d, %v; want 200", code, err)
	}
}

// Who follows sees each line when it comes, and leaves nothing behind.
func TestFollow(t *testing.T) {
	lines, left := make(chan string), make(chan struct{})
	s := serve(t, func(c *Config) {
		c.UnitLog = func(ctx context.Context, w io.Writer, _ string, _ int, _ bool) error {
			defer close(left)
			for {
				select {
				case line := <-lines:
					if _, err := io.WriteString(w, line); err != nil {
						return err
					}
				case <-ctx.Done():
					return nil
				}
			}
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", "https://"+s.addr+"/v1/logs/skerryd?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := s.client(t, s.root, s.now, Admins).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	for _, line := range []string{"one\n", "two\n"} {
		lines <- line
		if got, err := in.ReadString('\n'); err != nil || got != line {
			t.Fatalf("read %q, %v; want %q", got, err, line)
		}
	}
	cancel()
	select {
	case <-left:
	case <-time.After(20 * time.Second):
		t.Error("the handler goes on after its client has left")
	}
}

// The certificate is made anew when it must, and only then.
func TestCertificate(t *testing.T) {
	now := time.Now()
	_, inter := authority(t, now)
	names, addresses, at := []string{"barn-1"}, []net.IP{net.IPv4(10, 0, 0, 1)}, now
	cfg := Config{Authority: inter, Names: func() ([]string, []net.IP) { return names, addresses }, Now: func() time.Time { return at }}
	var c certificate
	last, err := c.get(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func()
		want   bool
	}{
		{"nothing", func() {}, false},
		{"half a year", func() { at = at.Add(pki.LeafLife / 2) }, false},
		{"a third of life left", func() { at = at.Add(pki.LeafLife / 5) }, true},
		{"three years forward", func() { at = at.Add(3 * pki.LeafLife) }, true},
		{"a day back", func() { at = at.Add(-24 * time.Hour) }, true},
		{"address", func() { addresses = []net.IP{net.IPv4(10, 0, 0, 2)} }, true},
		{"hostname", func() { names = []string{"barn-2"} }, true},
		{"another node has it", func() { names = []string{"barn-2", "barn-2-2"} }, true},
		{"nothing again", func() {}, false},
	} {
		tt.change()
		got, err := c.get(cfg)
		if err != nil || (got != last) != tt.want {
			t.Errorf("%s: made anew %v, %v; want %v", tt.name, got != last, err, tt.want)
		}
		for _, name := range names {
			if err := got.Leaf.VerifyHostname(name + ".local"); err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
		}
		if err := got.Leaf.VerifyHostname(addresses[0].String()); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		last = got
	}
}

// The bundle holds what helps, and no secret.
func TestSupport(t *testing.T) {
	file := filepath.Join(t.TempDir(), "skerry.yaml")
	if err := os.WriteFile(file, []byte("hostname: barn-1\nregistries:\n- host: a\n  password: hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, func(c *Config) { c.Configuration = file })
	code, body, err := s.do(s.client(t, s.root, s.now, Admins), "GET", "/v1/support", "")
	if err != nil || code != 200 {
		t.Fatalf("GET /v1/support = %d, %v; want 200", code, err)
	}
	zip, err := gzip.NewReader(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for in := tar.NewReader(zip); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(data)
	}
	for name, want := range map[string]string{
		"support/status.json": `"barn-1"`, "support/logs/skerryd.log": "skerryd -1", "support/proc/meminfo": "MemTotal", "support/proc/self/mountinfo": " / ",
		"support/proc/net/dev": "lo:", "support/processes.txt": "PID", "support/skerry.yaml": "hostname: barn-1", "support/init-goroutines.txt": "goroutine",
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s = %.80q; want %q in it", name, files[name], want)
		}
	}
	key, err := pki.KeyPEM(s.inter.Key)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		for _, secret := range []string{"hunter2", "PRIVATE KEY", string(key)} {
			if strings.Contains(text, secret) {
				t.Errorf("%s holds %.20q", name, secret)
			}
		}
		if strings.Contains(name, "provision") || strings.HasSuffix(name, ".key") {
			t.Errorf("the bundle holds %s", name)
		}
	}
}

func TestKernelLog(t *testing.T) {
	records := []any{"6,1,1234567,-;first\n SUBSYSTEM=x\n", unix.EPIPE, "3,4,2000000,-;last", unix.EAGAIN}
	got, err := readKernelLog(func(b []byte) (int, error) {
		r := records[0]
		records = records[1:]
		if err, ok := r.(error); ok {
			return 0, err
		}
		return copy(b, r.(string)), nil
	})
	if want := "[    1.234567] first\n[    2.000000] last\n"; err != nil || string(got) != want {
		t.Errorf("readKernelLog() = %q, %v; want %q", got, err, want)
	}
	for n, want := range map[int]string{-1: "a\nb\nc\n", 0: "", 1: "c\n", 2: "b\nc\n", 3: "a\nb\nc\n", 9: "a\nb\nc\n"} {
		if got := lastLines([]byte("a\nb\nc\n"), n); string(got) != want {
			t.Errorf("lastLines(%d) = %q; want %q", n, got, want)
		}
	}
}

func TestTailBuffer(t *testing.T) {
	b := &tailBuffer{max: 5}
	for _, p := range []string{"ab", "cdefgh", "i"} {
		b.Write([]byte(p))
	}
	if string(b.data) != "efghi" {
		t.Errorf("tailBuffer = %q; want the last 5 bytes", b.data)
	}
}

func TestStatusRoundTrip(t *testing.T) {
	want := api.Status{Node: api.Node{Name: "n"}, Slots: []api.Slot{{Name: "a"}}, Units: []api.Unit{{Name: "u", Since: time.Unix(5, 0).UTC()}}}
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got api.Status
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(got)
	if err != nil || !bytes.Equal(again, data) {
		t.Errorf("a status that was read is %s, %v; want %s", again, err, data)
	}
}
