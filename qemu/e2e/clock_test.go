//go:build full

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"skerry.internal/skerry/imagebuild/cluster"
	"skerry.internal/skerry/qemu"
)

// timeServer answers NTP on the host's loopback (RFC 5905, section 7.3), once
// it is told by how much its time is off; until then it is silent.
type timeServer struct {
	conn   net.PacketConn
	offset atomic.Pointer[time.Duration]
}

func serveTime(t *testing.T) *timeServer {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s := &timeServer{conn: conn}
	go func() {
		for b := make([]byte, 512); ; {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			offset := s.offset.Load()
			if n < 48 || offset == nil {
				continue
			}
			const era = 2208988800 // seconds from 1900 to 1970
			now := time.Now().Add(*offset)
			stamp := uint64(now.Unix()+era)<<32 | uint64(now.Nanosecond())<<32/1e9
			answer := make([]byte, 48)
			answer[0] = 4<<3 | 4 // version 4, server
			answer[1] = 1        // stratum
			answer[3] = 0xec     // precision, about a microsecond
			copy(answer[12:], "TEST")
			copy(answer[24:32], b[40:48]) // the client's time of sending
			for _, at := range []int{16, 32, 40} {
				binary.BigEndian.PutUint64(answer[at:], stamp)
			}
			conn.WriteTo(answer, from)
		}
	}()
	return s
}

// TestClock powers a node on whose hardware clock says 1970 and that reaches no
// time server; then one turns up and says that it is three years later; then
// the clock goes back by a day. It waits minutes for init to ask for the time
// again, so it is part of make test-all only, which sets the tag.
func TestClock(t *testing.T) {
	server := serveTime(t)
	n := startNode(t, func(c *qemu.Config) {
		c.RTC = time.Unix(0, 0)
		rest := c.Firmware
		c.Firmware = func(files map[string][]byte) error {
			err := rest(files)
			_, port, _ := net.SplitHostPort(server.conn.LocalAddr().String())
			files["skerry.yaml"] = fmt.Appendf(files["skerry.yaml"], "ntp: [10.0.2.2:%s]\n", port)
			return err
		}
	})
	n.want(`barn-1\s+Ready`, "get", "nodes")
	n.ops()
	works := func() error {
		if out, err := n.try("", "get", "--raw", "/readyz"); err != nil {
			return fmt.Errorf("API: %w: %s", err, out)
		}
		// Through kubelet, with the token that the pod has now.
		out, err := n.on(`busybox wget -T 10 -qO- --no-check-certificate --header "Authorization: Bearer $(busybox cat /var/run/secrets/kubernetes.io/serviceaccount/token)" https://10.43.0.1/version`)
		if err != nil || !strings.Contains(out, `"gitVersion"`) {
			return fmt.Errorf("a pod's token: %w: %s", err, out)
		}
		out, err = n.try("", "get", "node", "barn-1", "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		if err != nil || out != "True" {
			return fmt.Errorf("node Ready is %q, %w", out, err)
		}
		return nil
	}
	if err := works(); err != nil {
		t.Fatalf("with the clock of the bundle: %v", err)
	}

	// The operator's machine is in the present, so it gets a certificate for then,
	// and does not judge the node's, which is not valid yet here.
	const years = 3 * 365 * 24 * time.Hour
	c, err := cluster.Open(n.home, "e2e")
	if err != nil {
		t.Fatal(err)
	}
	at := func(when time.Duration) {
		t.Helper()
		data, err := c.Kubeconfig(fmt.Sprintf("https://127.0.0.1:%d", n.vm.Port(6443)), time.Now().Add(when))
		if err != nil {
			t.Fatal(err)
		}
		data = regexp.MustCompile(`certificate-authority-data: \S+`).ReplaceAll(data, []byte("insecure-skip-tls-verify: true"))
		if err := os.WriteFile(n.kubeconfig, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	recovers := func(what string) {
		t.Helper()
		begin := time.Now()
		n.eventually(what, works)
		took := time.Since(begin)
		t.Logf("%s: all works again after %.0f s", what, took.Seconds())
		if took > 2*time.Minute {
			t.Errorf("%s: it took %v; want at most two minutes", what, took)
		}
	}
	offset := years
	server.offset.Store(&offset)
	n.expect(`skerry: clock set by 2628\d+h.* to 20\d\d-`, 5*time.Minute)
	at(years)
	recovers("three years later")

	if out, err := n.on(`busybox date -s "@$(($(busybox date +%s) - 86400))"`); err != nil {
		t.Fatalf("set the clock back: %v: %s", err, out)
	}
	at(years - 48*time.Hour)
	recovers("a day back")
}
