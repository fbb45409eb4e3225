package node

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/pki"
	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/agent/status"
	"skerry.internal/skerry/imagebuild/cluster"
)

// home has a cluster of each name.
func home(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		if _, err := cluster.Create(dir, name, time.Now().Add(-24*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// serve is a node of the cluster, by the server that a node runs, whose clock
// says now, and returns its address.
func serve(t *testing.T, home, name string, now func() time.Time, names func() ([]string, []net.IP)) string {
	t.Helper()
	c, err := cluster.Open(home, name)
	if err != nil {
		t.Fatal(err)
	}
	data, err := c.Bundle(time.Now().Add(-23 * time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	b, err := provision.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	root, err := pki.ParseCert(b.CACert)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := pki.ParseAuthority(b.IntermediateCert, b.IntermediateKey)
	if err != nil {
		t.Fatal(err)
	}
	quiet := func(string, ...any) {}
	s := status.New(status.Config{Root: root, Authority: authority, Names: names, Now: now, Printf: quiet, Errorf: quiet,
		Status: func() api.Status { return api.Status{Time: now(), Node: api.Node{Name: "barn-1"}} },
		Units:  []string{"skerryd"},
		UnitLog: func(_ context.Context, w io.Writer, unit string, lines int, _ bool) error {
			_, err := fmt.Fprintf(w, "%s %d\n", unit, lines)
			return err
		},
		Reboot: func(bool) error { return nil }, Reset: func() error { return nil }})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-ended })
	return l.Addr().String()
}

func here() ([]string, []net.IP) { return []string{"barn-1"}, []net.IP{net.IPv4(127, 0, 0, 1)} }

func TestClient(t *testing.T) {
	dir := home(t, "home")
	c, err := Dial(dir, "home", serve(t, dir, "home", time.Now, here))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if st, raw, err := c.Status(ctx); err != nil || st.Node.Name != "barn-1" || !bytes.Contains(raw, []byte(`"barn-1"`)) {
		t.Errorf("Status() = %+v, %s, %v; want barn-1", st, raw, err)
	}
	var log bytes.Buffer
	if err := c.Logs(ctx, &log, "skerryd", 5, false); err != nil || log.String() != "skerryd 5\n" {
		t.Errorf("Logs() = %q, %v", log.String(), err)
	}
	if err := c.Logs(ctx, &log, "nothing", 5, false); err == nil || !strings.Contains(err.Error(), `no log "nothing": want one of`) {
		t.Errorf("Logs(nothing) = %v; want what the node says", err)
	}
	var support bytes.Buffer
	if err := c.Support(ctx, &support); err != nil || !bytes.HasPrefix(support.Bytes(), []byte("\x1f\x8b")) {
		t.Errorf("Support() = %d bytes, %v; want a gzip file", support.Len(), err)
	}
	if err := c.Reboot(ctx, true); err != nil {
		t.Errorf("Reboot() = %v", err)
	}
	if err := c.Reset(ctx, "barn-2"); err == nil || !strings.Contains(err.Error(), "barn-1") {
		t.Errorf("Reset() with another's name = %v; want it refused", err)
	}
	if err := c.Reset(ctx, "barn-1"); err != nil {
		t.Errorf("Reset() = %v", err)
	}
}

// Each way not to reach a node says what it is and what to do.
func TestErrors(t *testing.T) {
	dir := home(t, "home", "other")
	addr := serve(t, dir, "home", time.Now, here)
	elsewhere := func() ([]string, []net.IP) { return []string{"barn-1"}, []net.IP{net.IPv4(10, 9, 8, 7)} }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	// At noon, so that a certificate's earlier start is on the same day.
	noon := time.Now().UTC().Truncate(24 * time.Hour).Add(12*time.Hour + 3*pki.LeafLife)
	future := func() time.Time { return noon }
	for _, tt := range []struct {
		name, cluster, addr string
		now                 func() time.Time
		want                []string
	}{
		{"another cluster", "other", addr, time.Now, []string{"does not belong to cluster other", "--cluster"}},
		{"no cluster", "none", addr, time.Now, []string{"skerry cluster create none"}},
		{"nothing listens", "home", closed, time.Now, []string{"nothing answers on port", "console"}},
		{"another address", "home", serve(t, dir, "home", time.Now, elsewhere), time.Now, []string{"10.9.8.7", "barn-1.local"}},
		{"this machine is ahead", "home", addr, future, []string{"the clocks differ", time.Now().UTC().Format(time.DateOnly), noon.Format(time.DateOnly)}},
		{"the node is ahead", "home", serve(t, dir, "home", future, here), time.Now, []string{"the clocks differ", time.Now().UTC().Format(time.DateOnly), noon.Format(time.DateOnly)}},
		{"no address", "home", "https://x", time.Now, []string{"want an address"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := dial(dir, tt.cluster, tt.addr, tt.now)
			if err == nil {
				_, _, err = c.Status(t.Context())
			}
			if err == nil {
				t.Fatal("Status() = nil error; want one")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Status() = %v; want %q in it", err, want)
				}
			}
		})
	}
}

// The node's clock has moved on since it made its certificate, and this
// machine's has not: the node is the one that sees it.
func TestRefusedForItsDates(t *testing.T) {
	dir := home(t, "home")
	var now atomic.Pointer[time.Time]
	set := func(d time.Duration) { at := time.Now().Add(d); now.Store(&at) }
	set(0)
	addr := serve(t, dir, "home", func() time.Time { return *now.Load() }, here)
	c, err := Dial(dir, "home", addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	set(48 * time.Hour)
	if c, err = Dial(dir, "home", addr); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "the clocks differ by hours (this machine says "+time.Now().UTC().Format(time.DateOnly)) {
		t.Errorf("Status() = %v; want the clocks named", err)
	}
}

func TestSplit(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1 6442", "10.0.0.1:7": "10.0.0.1 7", "barn-1": "barn-1 6442", "barn-1.local:80": "barn-1.local 80",
		"2001:db8::1": "2001:db8::1 6442", "[2001:db8::1]:7": "2001:db8::1 7", "[2001:db8::1]": "2001:db8::1 6442",
		"": "", "a/b": "", "x:99999": "", "user@host": "",
	} {
		host, port, err := split(in)
		got := strings.TrimSpace(host + " " + port)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("split(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}
