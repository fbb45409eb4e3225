package dns

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// A name of the outside world is answered while the API server can't be
// reached: a node that is cut off from its cluster still resolves.
func TestForwardWithoutAPIServer(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	upstream := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		if rr, err := dns.NewRR(r.Question[0].Name + " 60 IN A 192.0.2.7"); err == nil {
			m.Answer = []dns.RR{rr}
		}
		w.WriteMsg(m)
	})}
	go upstream.ActivateAndServe()
	defer upstream.Shutdown()

	dir := t.TempDir()
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(kubeconfig, []byte(`{"apiVersion":"v1","kind":"Config","current-context":"t","clusters":[{"name":"t","cluster":{"server":"https://127.0.0.1:1"}}],
"users":[{"name":"t","user":{}}],"contexts":[{"name":"t","context":{"cluster":"t","user":"t"}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	free, err := net.ListenPacket("udp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.LocalAddr().(*net.UDPAddr).Port
	free.Close()

	c := Config{Addresses: []net.IP{net.IPv4(127, 0, 0, 2)}, Port: port, Kubeconfig: kubeconfig, Forward: pc.LocalAddr().String()}
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- Run(ctx, c, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("not ready within a minute")
	}
	m := new(dns.Msg)
	m.SetQuestion("example.test.", dns.TypeA)
	r, err := dns.Exchange(m, fmt.Sprintf("127.0.0.2:%d", port))
	if err != nil || len(r.Answer) != 1 || !strings.Contains(r.Answer[0].String(), "192.0.2.7") {
		t.Errorf("example.test = %v, %v; want 192.0.2.7", r, err)
	}
	// A name of the cluster is not asked of the outside, whatever it says.
	m.SetQuestion("web.default.svc.cluster.local.", dns.TypeA)
	if r, err := dns.Exchange(m, fmt.Sprintf("127.0.0.2:%d", port)); err != nil || len(r.Answer) != 0 {
		t.Errorf("a cluster's name with no API server = %v, %v; want no answer", r, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run() = %v after its context ended", err)
	}
}
