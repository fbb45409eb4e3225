package e2e

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/boot"
	"skerry.internal/skerry/imagebuild/cluster"
	"skerry.internal/skerry/qemu"
)

// skerryCommand builds the operator's command.
func skerryCommand(t testing.TB) string {
	t.Helper()
	build, err := qemu.BuildDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(build, "skerry-e2e")
	if out, err := exec.Command("go", "build", "-o", path, "skerry.internal/skerry/imagebuild/cmd/skerry").CombinedOutput(); err != nil {
		t.Fatalf("build skerry: %v\n%s", err, out)
	}
	return path
}

// operator is skerry node, called for one machine.
type operator struct {
	*node
	program, address string
}

func (o *operator) skerry(args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(o.t.Context(), o.limit(2*time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, o.program, append([]string{"node"}, args...)...)
	cmd.Env = append(os.Environ(), "SKERRY_HOME="+o.home)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

// status asks with --json.
func (o *operator) status() api.Status {
	o.t.Helper()
	out, errs, err := o.skerry("status", o.address, "--cluster", "e2e", "--json")
	if err != nil {
		o.t.Fatalf("skerry node status: %v: %s", err, errs)
	}
	var st api.Status
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		o.t.Fatalf("skerry node status --json: %v: %s", err, out)
	}
	return st
}

func (o *operator) unit(name string) api.Unit {
	o.t.Helper()
	for _, u := range o.status().Units {
		if u.Name == name {
			return u
		}
	}
	o.t.Fatalf("the status has no unit %s", name)
	return api.Unit{}
}

// look reads the status of a node that is well, and its logs; strangers can't.
func (o *operator) look() {
	o.t.Helper()
	st := o.status()
	if st.Node.Name != "barn-1" || st.Node.Cluster != "e2e" || st.Slot != "a" || len(st.Slots) != 2 || st.State.Size < 1<<30 || !st.Network.Address.IsValid() {
		o.t.Errorf("status = %+v", st)
	}
	phases := map[string]int{}
	for _, s := range st.Steps {
		phases[s.Phase]++
	}
	if phases["initramfs"] != len(boot.Initramfs) || phases["root"] != len(boot.Root) {
		o.t.Errorf("steps by phase = %v; want all of both", phases)
	}
	if out, errs, err := o.skerry("status", o.address); err != nil || !strings.Contains(out, "unit skerryd") || !strings.HasPrefix(out, "barn-1") {
		o.t.Errorf("skerry node status = %q, %q, %v; want text", out, errs, err)
	}
	for log, want := range map[string]string{"kernel": "skerry: unit skerryd", "containerd": "containerd", "skerryd": "\n"} {
		if out, errs, err := o.skerry("logs", o.address, log, "--cluster", "e2e", "--lines", "400"); err != nil || !strings.Contains(out, want) {
			o.t.Errorf("skerry node logs %s = %.200q, %q, %v; want %q in it", log, out, errs, err, want)
		}
	}
	o.strangers()
	o.support()
}

// testStatus comes after the kills of TestNode.
func (n *node) testStatus() {
	o := n.operator()
	o.look()
	if u := o.unit("skerryd"); u.Restarts != 2 {
		n.t.Errorf("skerryd after SIGKILL and SIGSTOP = %+v; want two restarts", u)
	}
	if u := o.unit("containerd"); u.Restarts != 1 || !strings.Contains(u.LastExit, "SIGKILL") {
		n.t.Errorf("containerd after SIGKILL = %+v; want one restart, and why", u)
	}
}

// withStatus forwards the port of the status API; operator asks it.
func withStatus(c *qemu.Config) { c.Forwards[api.Port] = 0 }

func (n *node) operator() *operator {
	n.t.Helper()
	return &operator{node: n, program: skerryCommand(n.t), address: fmt.Sprintf("127.0.0.1:%d", n.vm.Port(api.Port))}
}

func (o *operator) do(verb string, args ...string) {
	o.t.Helper()
	if _, errs, err := o.skerry(append([]string{verb, o.address}, args...)...); err != nil {
		o.t.Fatalf("skerry node %s: %v: %s", verb, err, errs)
	}
}

// strangers gets nothing: not without a certificate, and not with another
// cluster's.
func (o *operator) strangers() {
	o.t.Helper()
	get := func(certs ...tls.Certificate) (int, error) {
		config := &tls.Config{InsecureSkipVerify: true, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(certs) == 0 {
				return &tls.Certificate{}, nil
			}
			return &certs[0], nil
		}}
		client := http.Client{Timeout: o.limit(30 * time.Second), Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		resp, err := client.Get("https://" + o.address + "/v1/status")
		if err != nil {
			return 0, err
		}
		resp.Body.Close()
		return resp.StatusCode, nil
	}
	for name, ours := range map[string]bool{"e2e": true, "strange": false} { // the first is the twin
		home := o.home
		if !ours {
			home = o.t.TempDir()
			if _, err := cluster.Create(home, name, time.Now()); err != nil {
				o.t.Fatal(err)
			}
		}
		c, err := cluster.Open(home, name)
		if err != nil {
			o.t.Fatal(err)
		}
		cert, err := c.AdminCertificate(time.Now())
		if err != nil {
			o.t.Fatal(err)
		}
		if code, err := get(cert); (err == nil && code == 200) != ours {
			o.t.Errorf("GET as an administrator of %s = %d, %v; want an answer: %v", name, code, err, ours)
		}
	}
	if code, err := get(); err == nil {
		o.t.Errorf("GET without a certificate = %d; want no answer", code)
	}
}

// support looks for secrets in a support bundle, and for what it is good for.
func (o *operator) support() {
	o.t.Helper()
	path := filepath.Join(o.t.TempDir(), "support.tar.gz")
	o.do("support", "-o", path)
	f, err := os.Open(path)
	if err != nil {
		o.t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		o.t.Fatal(err)
	}
	secret := regexp.MustCompile(`PRIVATE KEY|intermediateKey|client-key-data`)
	files := map[string]int{}
	for in := tar.NewReader(zip); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			o.t.Fatal(err)
		}
		data, err := io.ReadAll(in)
		if err != nil {
			o.t.Fatal(err)
		}
		files[strings.TrimPrefix(h.Name, "support/")] = len(data)
		if found := secret.Find(data); found != nil {
			o.t.Errorf("%s holds %q", h.Name, found)
		}
	}
	for _, want := range []string{"status.json", "logs/kernel.log", "logs/containerd.log", "logs/skerryd.log", "proc/meminfo", "skerry.yaml", "processes.txt"} {
		if files[want] == 0 {
			o.t.Errorf("the support bundle has no %s; it has %v", want, files)
		}
	}
}
