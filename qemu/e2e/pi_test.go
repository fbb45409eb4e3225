package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/qemu"
)

// piTime bounds one wait on the Pi: four slow processors on whatever runs this.
const piTime = 25 * time.Minute

// TestPi boots the image of the Pi 3, whose FIRMWARE is the Pi 4's too, as a Pi
// does: with its own U-Boot, from its SD card, with a network adaptor on USB.
// The full count goes on to a running pod.
func TestPi(t *testing.T) { testPi(t, pi3, `MMC: +mmc@7e202000: 0`, true) }

// testPi wants U-Boot to name the card's controller like that, and the API to answer. With full counts, and if
// the machine is quick enough for a pod, it goes on to a node that is Ready, and to that.
func testPi(t *testing.T, x target, controller string, pod bool) {
	image := x.image(t)
	c, bundle := newBundle(t)
	vm := newMachine(t, x.board, x.machine, image, bundle, func(c *qemu.Config) {
		c.DiskSize = 1 << 30 // the emulated card takes half a minute per GiB to discard what becomes STATE
	})
	begin := time.Now()
	powerOn(t, vm)
	for _, mark := range []string{
		controller, // the Pi's own U-Boot, and its SD controller
		`skerry: slot a: starting `,
		`skerry: mount root done`,
		`skerry: provisioning bundle taken from FIRMWARE`,
		`skerry: .* has address 10\.0\.2\.15/24`,
		`skerry: unit containerd ready`,
		`skerry: kube-apiserver ready`,
	} {
		await(t, vm, mark, x.limit(piTime))
		t.Logf("%4.0f s  %s", time.Since(begin).Seconds(), mark)
	}
	ready(t, x, c.Dir, vm)
	t.Logf("API ready %.0f s after power-on", time.Since(begin).Seconds())
	if !testAll() || !pod {
		return
	}

	await(t, vm, `skerry: node ready`, x.limit(piTime))
	t.Logf("node Ready %.0f s after power-on", time.Since(begin).Seconds())
	n := &node{target: x, t: t, vm: vm, kubectl: kubectl(t), home: t.TempDir()}
	n.kubeconfig = filepath.Join(n.home, "kubeconfig")
	config, err := c.Kubeconfig(fmt.Sprintf("https://127.0.0.1:%d", vm.Port(6443)), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.kubeconfig, config, 0o600); err != nil {
		t.Fatal(err)
	}
	// The image's own pause: what is tested here is this machine, not a registry.
	n.k("run", "one", "--image=skerry.internal/pause:1", "--image-pull-policy=Never", "--restart=Never")
	n.k("wait", "--for=condition=Ready", "pod/one", "--timeout=240s")
	t.Logf("pod Ready %.0f s after power-on", time.Since(begin).Seconds())
}

// ready asks the API server from outside, over the Pi's USB network, whether it
// is ready; its certificate must come from the cluster's root.
func ready(t *testing.T, x target, cluster string, vm *qemu.VM) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: rootsOf(t, cluster)}, TLSHandshakeTimeout: time.Minute}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), x.limit(2*piTime))
	defer cancel()
	url := fmt.Sprintf("https://127.0.0.1:%d/readyz", vm.Port(6443))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(request)
	if err != nil {
		t.Fatalf("GET %s: %v\n%s", url, err, vm.Console())
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode != http.StatusOK || strings.TrimSpace(string(body)) != "ok" {
		t.Errorf("GET %s = %s %q, want 200 ok", url, answer.Status, body)
	}
}

// rootsOf is the CA of a cluster, in whose folder it is.
func rootsOf(t testing.TB, cluster string) *x509.CertPool {
	t.Helper()
	root, err := os.ReadFile(filepath.Join(cluster, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(root) {
		t.Fatal("ca.crt holds no certificate")
	}
	return pool
}
