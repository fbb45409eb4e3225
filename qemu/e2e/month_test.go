//go:build full

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/imagebuild/ociimage"
	"skerry.internal/skerry/qemu"
)

// What a node in a shop sees in a month, taken to be: two releases a day, each of
// an image with 8 MiB of its own; a CronJob every hour, with twelve writes to the
// database a run (job, pod, their states, and that the oldest of each goes); what kubelet
// reports of the node every five minutes; and a program that logs 100 bytes a second.
// The writes are of 4 kB, as the objects of a node and its pods are. Leases and
// Events, which would be most of all writes, are in memory. Jobs are run by the
// ten, or it would take the night: of each ten, nine are only their writes.
const (
	monthDays     = 30
	monthReleases = 2 * monthDays
	monthJobs     = 24 * monthDays
	monthWrites   = 24*12*monthDays + 12*monthJobs
	monthLog      = 100 * 86400 * monthDays
)

// TestMonth has a node live through that in two halves: after the second nothing
// may have grown beyond its bound, where it has one, or by more than it varies by itself. Then the clock goes past the time at which
// certificates are renewed, twice.
func TestMonth(t *testing.T) {
	server := serveTime(t)
	n := startNode(t, server.ask, func(c *qemu.Config) {
		c.DiskSize = 2 << 30 // so that images have to go
		c.Forwards[api.Port], c.Forwards[kubeletPort] = 0, 0
	})
	n.ops()
	first := n.halfMonth(0)
	second := n.halfMonth(1)
	t.Logf("after half a month: %v", first)
	t.Logf("after a month: %v", second)
	for name, limit := range map[string]int{
		"database":   first["database"] * 3 / 2, // it is compacted every five minutes: how full it is just then varies
		"wal":        16 << 10,
		"metadata":   2 * first["metadata"],                   // bbolt doubles its file
		"logs":       4 * 5 << 10,                             // of two units one file and an older one
		"pods":       2 * 40 << 10,                            // of each talker two files with what came in ten seconds and five MiB, and one compressed
		"snapshots":  first["snapshots"] + second["database"], // one a day: at most one more
		"objects":    first["objects"] + 20,                   // what pods leave behind
		"containerd": second["room"] * 85 / 100,               // images that nobody uses go from 75 per cent of all on, see used
		"used":       90,                                      // per cent of STATE: kubelet removes images from 75 on, but looks every five minutes, and this is a month in one hour
	} {
		if got := second[name]; got > limit || got == 0 && name != "pods" {
			t.Errorf("%s after a month: %d; want at most %d", name, got, limit)
		}
	}
	if out := n.k("get", "pods", "-A", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.reason}{"\n"}{end}`); strings.Contains(out, "Evicted") {
		t.Errorf("pods were evicted, though old images could have gone:\n%s", out)
	}

	const renewed = 260 * 24 * time.Hour // of a life of 365 days, of which a third is kept in hand
	for round := range 2 {
		offset := time.Duration(round+1) * renewed
		server.tell(offset)
		// A network that comes back has the node ask at once, and not a quarter of an hour later.
		for _, plugged := range []bool{false, true} {
			if err := n.vm.Link(t.Context(), plugged); err != nil {
				t.Fatal(err)
			}
			n.expect(`skerry: network: eth0 .*link`, 2*time.Minute)
		}
		n.expect(`skerry: clock set by 62\d\dh`, 3*time.Minute)
		n.at(offset)
		n.recovers(fmt.Sprintf("after %d days", (round+1)*260), offset)
		n.eventually("every certificate is renewed", func() error { return n.certificates(time.Now().Add(offset)) })
	}
	// The twin: another 260 days on, without a renewal.
	if err := n.certificates(time.Now().Add(3 * renewed)); err == nil || !strings.Contains(err.Error(), "is valid from") {
		t.Errorf("certificates of today in most of a year: %v; want them to be found too old", err)
	}
}

// halfMonth does half of a month's work and returns what takes room after it: kB,
// but for objects (a number) and used (per cent).
func (n *node) halfMonth(half int) map[string]int {
	n.t.Helper()
	board, _ := n.find(n.t)
	arch := board.Arch
	begin := time.Now()
	ctx, cancel := context.WithTimeout(n.t.Context(), 90*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	fail := func(err error) {
		if err != nil {
			mu.Lock()
			failed = append(failed, err)
			mu.Unlock()
		}
	}
	run := func(stdin string, args ...string) error {
		out, err := n.try(stdin, args...)
		if err != nil {
			err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return err
	}

	// await runs a kubectl that waits, as often as it takes: how long that is depends on the machine.
	await := func(args ...string) (err error) {
		for {
			if err = run("", append(args, "--timeout=600s")...); err == nil || !strings.Contains(err.Error(), "timed out waiting for the condition") || ctx.Err() != nil {
				return err
			}
		}
	}

	// Objects that change.
	client := n.client().CoreV1().ConfigMaps("default")
	var left atomic.Int64
	left.Store(monthWrites / 2)
	for w := range 4 {
		wg.Go(func() {
			name := fmt.Sprintf("report-%d-%d", half, w)
			cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
			_, err := client.Create(ctx, cm, metav1.CreateOptions{})
			for err == nil && left.Add(-1) >= 0 {
				cm.Data = map[string]string{"report": noise(3 << 10)}
				_, err = client.Update(ctx, cm, metav1.UpdateOptions{})
			}
			fail(err)
			fail(client.Delete(ctx, name, metav1.DeleteOptions{}))
		})
	}
	// A program that logs.
	wg.Go(func() {
		// A megabyte a second: kubelet looks every ten whether a log is too long.
		line := fmt.Sprintf("i=0; while [ $i -lt %d ]; do busybox yes %s | busybox head -c 1000000; i=$((i+1)); busybox sleep 1; done", monthLog/2/1000000, strings.Repeat("a", 99))
		fail(run(fmt.Sprintf(`{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":"talker-%d"},"spec":{"template":{"spec":{"restartPolicy":"Never",
			"containers":[{"name":"main","image":%q,"args":["sh","-c",%q]}]}}}}`, half, n.image, line), "apply", "-f", "-"))
		fail(await("wait", "--for=condition=complete", fmt.Sprintf("job/talker-%d", half)))
	})
	// Jobs that come and go, and releases.
	wg.Go(func() {
		for i := range monthJobs / 2 / 10 / 6 {
			name := fmt.Sprintf("hourly-%d-%d", half, i)
			fail(run(fmt.Sprintf(`{"apiVersion":"batch/v1","kind":"Job","metadata":{"name":%q},"spec":{"completions":6,"parallelism":3,"ttlSecondsAfterFinished":0,
				"template":{"spec":{"restartPolicy":"Never","containers":[{"name":"main","image":%q,"args":["true"]}]}}}}`, name, n.image), "apply", "-f", "-"))
			fail(await("wait", "--for=delete", "job/"+name))
		}
	})
	wg.Go(func() {
		for i := range monthReleases / 2 {
			ref := fmt.Sprintf("shop:%d-%d", half, i)
			pushBusybox(n.t, arch, "127.0.0.1:"+n.registry+"/"+ref, ociimage.File{Path: "/content", Mode: 0o644, Data: []byte(noise(8 << 20))})
			fail(run(fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"shop"},"spec":{"revisionHistoryLimit":2,"progressDeadlineSeconds":7200,"selector":{"matchLabels":{"app":"shop"}},
				"template":{"metadata":{"labels":{"app":"shop"}},"spec":{"terminationGracePeriodSeconds":0,"containers":[{"name":"main","image":"10.0.2.2:%s/%s","args":["sleep","1000000"]}]}}}}`, n.registry, ref), "apply", "-f", "-"))
			fail(await("rollout", "status", "deployment/shop"))
		}
	})
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		// What a program ended with is far up: in an hour the console says much.
		units := regexp.MustCompile(`(?m)^\[.*skerry: (error: )?(unit|network|clock).*$`).FindAllString(n.vm.Console(), -1)
		log, _ := n.on("cd /proc/1/root/var/log/skerry && busybox grep -h -e '^skerryd:' -e ^panic: -e ^F skerryd.log*")
		n.t.Fatalf("half a month's work: %v\n%s\n--- units\n%s\n--- skerryd's log\n%s", err, n.state(), strings.Join(units, "\n"), log)
	}
	n.t.Logf("half a month's work took %.0f s", time.Since(begin).Seconds())

	const root = "/proc/1/root/var"
	sizes := map[string]int{"objects": strings.Count(n.must("busybox find "+root+"/log/pods "+root+"/log/containers "+root+
		"/lib/kubelet/pods -mindepth 1 -maxdepth 2 2>/dev/null; true"), "\n")} // what goes meanwhile is an error of find's
	number := func(name, line string) {
		n.t.Helper()
		// A file may go while du looks.
		out := n.must(line + " 2>/dev/null | busybox tail -n 1")
		size, err := strconv.Atoi(regexp.MustCompile(`^\d*`).FindString(strings.TrimSpace(out)))
		if err != nil {
			n.t.Fatalf("%s: %q", line, out)
		}
		sizes[name] = size
	}
	number("database", "busybox du -k "+root+"/lib/skerry/db/state.db")
	number("wal", "busybox du -k "+root+"/lib/skerry/db/state.db-wal")
	number("logs", "busybox du -sk "+root+"/log/skerry")
	number("pods", "busybox du -sk "+root+"/log/pods")
	number("containerd", "busybox du -sk "+root+"/lib/containerd")
	number("metadata", "busybox du -k "+root+"/lib/containerd/io.containerd.metadata.v1.bolt/meta.db")
	number("snapshots", "busybox du -sk "+root+"/lib/skerry/snapshots")
	number("room", "busybox df -k "+root+` | busybox awk 'NR > 1 {print $3+$4}'`)
	number("used", "busybox df -k "+root+` | busybox awk 'NR > 1 {print int($3*100/($3+$4))}'`)
	return sizes
}

// noise does not compress.
func noise(size int) string {
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Uint32())
	}
	data := make([]byte, size*3/4)
	rand.NewChaCha8(seed).Read(data)
	return base64.StdEncoding.EncodeToString(data)
}

// certificates looks at every certificate that the node serves or keeps, those of
// authorities apart: each must be valid then, with a third of its life left, or it should have been renewed.
func (n *node) certificates(now time.Time) error {
	found := map[string]*x509.Certificate{}
	for _, port := range []int{6443, api.Port, kubeletPort} {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 30 * time.Second}, "tcp", fmt.Sprintf("127.0.0.1:%d", n.vm.Port(port)), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return fmt.Errorf("port %d: %w", port, err)
		}
		found[fmt.Sprintf("port %d", port)] = conn.ConnectionState().PeerCertificates[0]
		conn.Close()
	}
	out, err := n.on(`for f in $(busybox find /proc/1/root/var/lib/skerry /proc/1/root/var/lib/kubelet /proc/1/root/run/skerry -type f -size -64k); do echo "== $f"
		busybox sed -n -e '/BEGIN CERTIFICATE/,/END CERTIFICATE/p' -e 's/^ *client-certificate-data: //p' $f; done 2>/dev/null`)
	if err != nil {
		return fmt.Errorf("read certificates: %w: %s", err, out)
	}
	for _, part := range strings.Split(out, "== ")[1:] {
		file, text, _ := strings.Cut(part, "\n")
		data := []byte(text)
		if decoded, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text)); err == nil {
			data = decoded
		}
		for i := 0; ; i++ {
			var block *pem.Block
			if block, data = pem.Decode(data); block == nil {
				break
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if !cert.IsCA {
				found[fmt.Sprintf("%s (%d)", file, i)] = cert
			}
		}
	}
	// apiserver, its two clients, kubelet's own, and the programs' kubeconfigs.
	if len(found) < 10 {
		return fmt.Errorf("only %d certificates found: %v", len(found), found)
	}
	var errs []error
	for name, cert := range found {
		if life := cert.NotAfter.Sub(cert.NotBefore); now.Before(cert.NotBefore) || now.Add(life/3).After(cert.NotAfter) {
			errs = append(errs, fmt.Errorf("%s: %s is valid from %v to %v; it is %v", name, cert.Subject, cert.NotBefore, cert.NotAfter, now))
		}
	}
	if len(errs) == 0 {
		n.t.Logf("%d certificates, all good on %s", len(found), now.Format(time.DateOnly))
	}
	return errors.Join(errs...)
}
