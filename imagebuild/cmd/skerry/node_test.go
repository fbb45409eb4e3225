package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
)

func TestPrintStatus(t *testing.T) {
	st := api.Status{
		Node: api.Node{Name: "barn-1", Cluster: "home", Role: "server"}, Slot: "a", Uptime: time.Hour,
		Slots:   []api.Slot{{Name: "a", Status: "ok", Good: true, Version: "1.2"}, {Name: "b", Status: "empty"}},
		Units:   []api.Unit{{Name: "skerryd", State: "ready", Restarts: 2}},
		Network: api.Network{Interfaces: []api.Interface{{Name: "eth0", MAC: "02:00:00:00:00:01", Plugged: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}}}},
		Steps:   []api.Step{{Name: "start skerryd", Running: true}},
	}
	print := func() string {
		var b strings.Builder
		if err := printStatus(&b, st); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	got := print()
	for _, want := range []string{"barn-1 is well\n", "home, as server", "ok, running, good, 1.2", "ready, restarts: 2", "10.0.0.2/24, 02:00", `"start skerryd", runs`} {
		if !strings.Contains(got, want) {
			t.Errorf("printStatus() = %s; want %q in it", got, want)
		}
	}
	st.Problems = []api.Problem{{Where: "network", What: "no cable is plugged in", Doing: "plug one in"}}
	if got := print(); !strings.HasPrefix(got, "barn-1: problems\n  network: no cable is plugged in\n    plug one in\n") || strings.Contains(got, "is well") {
		t.Errorf("printStatus() = %s; want the problem first", got)
	}
}

func TestNodeCalls(t *testing.T) {
	t.Setenv("SKERRY_HOME", t.TempDir())
	for _, tt := range []struct {
		args   string
		status int
		want   string
	}{
		{"node --help", 0, "status"},
		{"node status", 2, "ADDRESS"},
		{"node status 192.0.2.1", 1, "skerry cluster create"},
		{"node status 192.0.2.1 --cluster none", 1, "skerry cluster create none"},
		{"node reset 192.0.2.1", 2, "--yes is missing"},
		{"node logs 192.0.2.1", 2, "kernel|containerd|skerryd"},
		{"cluster create one", 0, ""},
		{"cluster create two", 0, ""},
		{"node status 192.0.2.1", 2, "one of one, two"},
	} {
		status, stdout, stderr := skerry(t, strings.Fields(tt.args)...)
		if status != tt.status || !strings.Contains(stdout+stderr, tt.want) {
			t.Errorf("skerry %s: status %d, says %q; want status %d and %q", tt.args, status, stdout+stderr, tt.status, tt.want)
		}
	}
}
