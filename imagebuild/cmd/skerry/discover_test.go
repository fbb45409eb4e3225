package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/claim"
	"skerry.internal/skerry/agent/discovery"
	"skerry.internal/skerry/agent/discovery/lantest"
	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/imagebuild/discover"
)

// A laptop and a node on one network: the command finds it, claims it by its
// name, and then finds that it is claimed. Node and command are the real ones,
// but for what starts on the node afterwards.
func TestDiscoverAndClaim(t *testing.T) {
	t.Setenv("SKERRY_HOME", filepath.Join(t.TempDir(), "home"))
	lan := lantest.New(t)
	laptop, barn := lan.Host("laptop", "10.9.0.9/24"), lan.Host("barn", "10.9.0.1/24")
	type answer struct {
		status         int
		stdout, stderr string
	}
	run := func(args ...string) (a answer) {
		laptop.Run(func() { a.status, a.stdout, a.stderr = skerry(t, args...) })
		return a
	}
	if a := run("discover", "--timeout", "1s"); a.status != 0 || !strings.HasPrefix(a.stdout, "none found") {
		t.Errorf("skerry discover with nobody there: %+v; want status 0 and none found", a)
	}
	if a := run("discover", "--timeout", "1s", "--json"); a.status != 0 || a.stdout != "[]\n" {
		t.Errorf("skerry discover --json with nobody there: %+v; want status 0 and []", a)
	}

	typed, state := unclaimed(t, barn)

	const table = "NAME  ADDRESS   CLUSTER  ROLE    VERSION  CLAIMED\n"
	if a := run("discover"); a.status != 0 || !strings.Contains(a.stdout, "barn  10.9.0.1  -        -     1.2.3    no\n") {
		t.Errorf("skerry discover: %+v; want the node, unclaimed", a)
	}
	var nodes []discover.Node
	if a := run("discover", "--json"); json.Unmarshal([]byte(a.stdout), &nodes) != nil || len(nodes) != 1 || nodes[0].Name != "barn" || nodes[0].Claimed || nodes[0].Board != "rpi4" {
		t.Errorf("skerry discover --json: %+v; want the node, unclaimed", a)
	}
	if a := run("cluster", "create", "home"); a.status != 0 {
		t.Fatalf("skerry cluster create: %+v", a)
	}
	// By a name that only the node itself tells: no resolver knows it.
	for name, want := range map[string]string{"barn": "does not belong to cluster home", "barn.local": "does not belong to cluster home", "mast": "nobody knows that name"} {
		if a := run("node", "status", name); a.status != 1 || !strings.Contains(a.stderr, want) {
			t.Errorf("skerry node status %s: %+v; want status 1 and %q", name, a, want)
		}
	}
	for _, tt := range []struct {
		args   string
		status int
		want   string
	}{
		{"mast --fingerprint F --code C", 1, "nobody of that name answers"},
		{"barn --fingerprint F --code 0000-0000", 1, "the fingerprint is another"},
		{"barn --fingerprint F --code 000", 2, "want 8 letters and digits"},
		{"barn --fingerprint F", 2, "--code is missing"},
		{"barn.local --fingerprint F --code C", 0, "now type: skerry cluster kubeconfig home --server https://10.9.0.1:6443 -o home.kubeconfig"},
		{"barn --fingerprint F --code C", 1, `belongs to cluster "home" already`},
	} {
		fingerprint := typed[0]
		if strings.Contains(tt.want, "fingerprint") {
			fingerprint = "0000-0000-0000-0000"
		}
		args := strings.Fields(strings.NewReplacer(" F", " "+fingerprint, " C", " "+typed[1]).Replace("cluster claim home " + tt.args))
		if a := run(args...); a.status != tt.status || !strings.Contains(a.stdout+a.stderr, tt.want) {
			t.Errorf("skerry %q: %+v; want status %d and %q", args, a, tt.status, tt.want)
		}
	}
	if a := run("discover"); a.stdout != table+"barn  10.9.0.1  home     server  1.2.3    yes\n" {
		t.Errorf("skerry discover: %+v; want the node, claimed", a)
	}
	if b, err := provision.Load(state); err != nil || b == nil || b.Cluster != "home" {
		t.Errorf("the node keeps %+v, %v; want the bundle of home", b, err)
	}
}

// unclaimed starts on a host what a card without a cluster runs. It returns the
// fingerprint and the code, and where the bundle is kept.
func unclaimed(t *testing.T, barn *lantest.Host) (typed [2]string, state string) {
	t.Helper()
	state = t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	responder := discovery.New(discovery.Config{Host: "barn", Port: api.Port, Use: func(name string) bool { return name == "eth0" }, Printf: t.Logf, Errorf: t.Logf},
		api.Announcement{Version: "1.2.3", Board: "rpi4", ID: "aa"})
	responding := barn.Go(func() { responder.Run(ctx) })
	shown := make(chan [2]string, 1)
	server, err := claim.New(claim.Config{Node: api.Unclaimed{Name: "barn", Board: "rpi4", Version: "1.2.3"},
		Keep: func(data []byte) error { return provision.Store(state, data) },
		Show: func(fingerprint, code string) { shown <- [2]string{fingerprint, code} }, Printf: t.Logf, Errorf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	serving := barn.Go(func() {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", api.Port))
		if err != nil {
			t.Error(err)
			return
		}
		if b, err := server.Serve(ctx, l); err == nil {
			responder.Set(api.Announcement{Version: "1.2.3", Cluster: b.Cluster, Role: string(b.Role), Claimed: true, ID: "aa"})
		} else if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); <-responding; <-serving })
	select {
	case typed = <-shown:
	case <-time.After(time.Minute):
		t.Fatal("nothing is shown")
	}
	return typed, state
}

// A laptop with a cable to the node, and no DHCP: IPv6 has addresses of its own.
func TestClaimWithoutDHCP(t *testing.T) {
	t.Setenv("SKERRY_HOME", filepath.Join(t.TempDir(), "home"))
	lan := lantest.New(t)
	laptop := lan.Host("laptop")
	typed, state := unclaimed(t, lan.Host("barn"))
	laptop.Run(func() { // until both have made their addresses
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		discover.Find(ctx, func(discover.Node) bool { return true })
	})
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"create", "home"}, ""},
		{[]string{"claim", "home", "barn", "--fingerprint", typed[0], "--code", typed[1]}, "--server https://barn.local:6443"},
	} {
		laptop.Run(func() {
			if status, stdout, stderr := skerry(t, append([]string{"cluster"}, tt.args...)...); status != 0 || !strings.Contains(stdout, tt.want) {
				t.Errorf("skerry cluster %q: status %d, %q, %q; want %q", tt.args, status, stdout, stderr, tt.want)
			}
		})
	}
	if b, err := provision.Load(state); err != nil || b == nil {
		t.Errorf("the node keeps %v, %v; want a bundle", b, err)
	}
}

func TestAskFor(t *testing.T) {
	var out strings.Builder
	in := bufio.NewReader(strings.NewReader(" k7qd 2mxn\n"))
	if got, err := askFor(in, &out, true, "code", ""); got != "k7qd 2mxn" || err != nil || !strings.Contains(out.String(), "the code on the node's console") {
		t.Errorf("askFor() = %q, %v, asks %q; want what was typed", got, err, out.String())
	}
	if got, err := askFor(in, &out, true, "code", "ABCD-EFGH"); got != "ABCD-EFGH" || err != nil {
		t.Errorf("askFor() with a flag = %q, %v; want the flag's", got, err)
	}
	if got, err := askFor(in, &out, true, "code", ""); err == nil {
		t.Errorf("askFor() at the end of input = %q; want an error", got)
	}
}
