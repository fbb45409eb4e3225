//go:build full

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
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

// ask has the node ask this server and no other.
func (s *timeServer) ask(c *qemu.Config) {
	rest := c.Firmware
	c.Firmware = func(files map[string][]byte) error {
		err := rest(files)
		_, port, _ := net.SplitHostPort(s.conn.LocalAddr().String())
		files["skerry.yaml"] = fmt.Appendf(files["skerry.yaml"], "ntp: [10.0.2.2:%s]\n", port)
		return err
	}
}

// tell has the time be off from now on.
func (s *timeServer) tell(offset time.Duration) { s.offset.Store(&offset) }

// at has kubectl live in the node's time, which is off: a certificate for then,
// and no judgement on the node's, which is not valid here.
func (n *node) at(offset time.Duration) {
	n.t.Helper()
	c, err := cluster.Open(n.home, "e2e")
	if err != nil {
		n.t.Fatal(err)
	}
	data, err := c.Kubeconfig(fmt.Sprintf("https://127.0.0.1:%d", n.vm.Port(6443)), time.Now().Add(offset))
	if err != nil {
		n.t.Fatal(err)
	}
	data = regexp.MustCompile(`certificate-authority-data: \S+`).ReplaceAll(data, []byte("insecure-skip-tls-verify: true"))
	if err := os.WriteFile(n.kubeconfig, data, 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// holds wants the API's and the kubelet's certificates to be valid in the node's time,
// which is off, and of the cluster's CA.
func (n *node) holds(offset time.Duration) error {
	c, err := cluster.Open(n.home, "e2e")
	if err != nil {
		return err
	}
	roots := rootsOf(n.t, c.Dir)
	for port, name := range map[int]string{6443: "barn-1.local", kubeletPort: "barn-1"} {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 30 * time.Second}, "tcp", fmt.Sprintf("127.0.0.1:%d", n.vm.Port(port)),
			&tls.Config{RootCAs: roots, ServerName: name, Time: func() time.Time { return time.Now().Add(offset) }})
		if err != nil {
			return fmt.Errorf("certificate on port %d: %w", port, err)
		}
		conn.Close()
	}
	return nil
}

const kubeletPort = 10250

// works asks the API, the kubelet, and the API again from a pod with its token.
func (n *node) works() error {
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

// recovers wants all to work again within two minutes in the node's time, which is off.
func (n *node) recovers(what string, offset time.Duration) {
	n.t.Helper()
	begin := time.Now()
	n.eventually(what, func() error { return errors.Join(n.holds(offset), n.works()) })
	took := time.Since(begin)
	n.t.Logf("%s: all works again after %.0f s", what, took.Seconds())
	if took > 2*time.Minute {
		n.t.Errorf("%s: it took %v; want at most two minutes", what, took)
	}
}

// oldImage builds the image as if its sources were of that time.
func oldImage(t *testing.T, at time.Time) string {
	t.Helper()
	out := t.TempDir()
	cmd := exec.Command(skerryCommand(t), "image", "build", "--board", "rpi4", "--project", "../..", "-o", out)
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", at.Unix()))
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build an old image: %v\n%s", err, said)
	}
	return filepath.Join(out, "skerry-rpi4.img")
}

// TestClock powers on a node whose image is a month older than its cluster, whose
// hardware clock says 1970 and that reaches no time server; then one turns up and says
// that it is three years later; then the clock goes back by a day. It waits minutes for
// init to ask for the time again, so it is part of make test-all only, which sets the tag.
func TestClock(t *testing.T) {
	server := serveTime(t)
	old := oldImage(t, time.Now().Add(-30*24*time.Hour))
	n := startNode(t, server.ask, func(c *qemu.Config) { c.RTC, c.Image, c.Forwards[kubeletPort] = time.Unix(0, 0), old, 0 })
	n.want(`barn-1\s+Ready`, "get", "nodes")
	n.ops()
	n.eventually("all works with the clock of the bundle", func() error { return errors.Join(n.holds(0), n.works()) })
	// The bundle is minutes old, the image a month.
	out := strings.TrimSpace(n.must("busybox date +%s"))
	if seconds, err := strconv.ParseInt(out, 10, 64); err != nil || time.Since(time.Unix(seconds, 0)).Abs() > time.Hour {
		t.Errorf("the node's clock says %s, %v; want %d, give or take an hour", out, err, time.Now().Unix())
	}
	running := n.untouched()

	const years = 3 * 365 * 24 * time.Hour
	if err, bad := n.holds(years), (x509.CertificateInvalidError{}); !errors.As(err, &bad) || bad.Reason != x509.Expired { // the twin
		t.Errorf("today's certificates in three years: %v; want them to be found too old", err)
	}
	server.tell(years)
	n.expect(`skerry: clock set by 2628\d+h.* to 20\d\d-`, 5*time.Minute)
	n.at(years)
	n.recovers("three years later", years)

	// Nobody knows how often a token is asked for anew: two days on it was issued there.
	const days = 24 * time.Hour
	server.tell(years + 2*days)
	set := func(change time.Duration) {
		t.Helper()
		if out, err := n.on(fmt.Sprintf(`busybox date -s "@$(($(busybox date +%%s) + %d))"`, int(change.Seconds()))); err != nil {
			t.Fatalf("set the clock by %v: %v: %s", change, err, out)
		}
	}
	set(2 * days)
	n.at(years + 2*days)
	n.recovers("two days on", years+2*days)
	n.eventually("the pod's token is of these days", func() error {
		if at, want := n.tokenIssued(), time.Now().Add(years+days); at.Before(want) {
			return fmt.Errorf("issued %v; want after %v", at, want)
		}
		return nil
	})

	server.tell(years + days)
	set(-days)
	n.at(years)
	n.recovers("a day back", years+days)
	if now := n.untouched(); now != running {
		t.Errorf("boot and container: %s; want %s as before", now, running)
	}
}

// untouched tells one boot from the next, and one container from the next.
func (n *node) untouched() string {
	n.t.Helper()
	return n.must("busybox cat /proc/sys/kernel/random/boot_id") + n.container("ops")
}

// tokenIssued is when the token of pod ops was issued, as it says (RFC 7519, "iat").
func (n *node) tokenIssued() time.Time {
	n.t.Helper()
	parts := strings.Split(n.must("busybox cat /var/run/secrets/kubernetes.io/serviceaccount/token"), ".")
	var claims struct {
		Issued int64 `json:"iat"`
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[min(1, len(parts)-1)])
	if err == nil {
		err = json.Unmarshal(data, &claims)
	}
	if err != nil {
		n.t.Fatalf("read the pod's token: %v", err)
	}
	return time.Unix(claims.Issued, 0)
}
