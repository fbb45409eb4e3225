package discovery_test

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/discovery"
	"skerry.internal/skerry/agent/discovery/lantest"
	"skerry.internal/skerry/imagebuild/discover"
)

// patience bounds what takes seconds at most, on a busy machine.
const patience = time.Minute

// node is a responder on a host.
type node struct {
	*discovery.Responder
	stop func()

	mu   sync.Mutex // guards said
	said strings.Builder
}

func (n *node) printf(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintf(&n.said, format+"\n", args...)
}

func (n *node) console() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.said.String()
}

// announce starts a responder.
func announce(t *testing.T, h *lantest.Host, name, id string) *node {
	t.Helper()
	n := &node{}
	n.Responder = discovery.New(discovery.Config{Host: name, Port: api.Port, Use: func(name string) bool { return name != "lo" }, Printf: n.printf, Errorf: n.printf},
		api.Announcement{Version: "1.2.3", Board: "rpi4", ID: id})
	ctx, cancel := context.WithCancel(t.Context())
	done := h.Go(func() { n.Run(ctx) })
	n.stop = func() { cancel(); <-done }
	t.Cleanup(n.stop)
	return n
}

// seen asks from a host until what is there is as it should be.
func seen(t *testing.T, h *lantest.Host, what string, want func(map[string]discover.Node) bool) map[string]discover.Node {
	t.Helper()
	all := map[string]discover.Node{}
	h.Run(func() {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, err := discover.Find(ctx, func(n discover.Node) bool { all[n.Name] = n; return want(all) })
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	})
	if !want(all) {
		t.Fatalf("%s: found %+v", what, all)
	}
	return all
}

func has(names ...string) func(map[string]discover.Node) bool {
	return func(all map[string]discover.Node) bool {
		return !slices.ContainsFunc(names, func(n string) bool { return all[n].Name == "" })
	}
}

func at(name string, address string) func(map[string]discover.Node) bool {
	return func(all map[string]discover.Node) bool {
		return slices.Contains(all[name].Addresses, netip.MustParseAddr(address))
	}
}

// Two nodes of one name: whether the second comes later or at the same moment,
// both are found, one of them by another name, and it says so.
func TestOneName(t *testing.T) {
	for _, together := range []bool{false, true} {
		t.Run(fmt.Sprintf("together=%v", together), func(t *testing.T) {
			t.Parallel()
			lan := lantest.New(t)
			a, b, laptop := lan.Host("a", "10.9.0.1/24"), lan.Host("b", "10.9.0.2/24"), lan.Host("laptop", "10.9.0.9/24")
			first := announce(t, a, "barn", "aa")
			if !together {
				seen(t, laptop, "the first", has("barn"))
				a.Add("10.9.0.50/24") // it must not let go of its name meanwhile
			}
			second := announce(t, b, "barn", "bb")
			all := seen(t, laptop, "both", has("barn", "barn-2"))
			if !together && (all["barn"].ID != "aa" || all["barn-2"].ID != "bb") {
				t.Errorf("barn and barn-2 = %+v; want who was first to keep the name", all)
			}
			if all["barn"].ID == all["barn-2"].ID {
				t.Errorf("barn and barn-2 = %+v; want both nodes", all)
			}
			for _, n := range []*node{first, second} {
				problem := n.Problem()
				if renamed := n.Name() == "barn-2"; renamed != strings.Contains(problem, "another node here has the name barn") || renamed != (strings.Count(n.console(), problem+"\n") == 1 && problem != "") {
					t.Errorf("%s has the problem %q, and says %q; want it said once by the one that was renamed", n.Name(), problem, n.console())
				}
			}
			// Who has the name leaves, and there is an event: the other takes its own again.
			owner, other, host := first, second, b
			if first.Name() != "barn" {
				owner, other, host = second, first, a
			}
			owner.stop()
			host.Add("10.9.0.77/24")
			all = seen(t, laptop, "the one that is left", func(all map[string]discover.Node) bool { return at("barn", "10.9.0.77")(all) })
			if other.Name() != "barn" || other.Problem() != "" {
				t.Errorf("name %q, problem %q; want barn and none", other.Name(), other.Problem())
			}
		})
	}
}

// The twin: two names, no problem.
func TestTwoNames(t *testing.T) {
	t.Parallel()
	lan := lantest.New(t)
	laptop := lan.Host("laptop", "10.9.0.9/24")
	a, b := announce(t, lan.Host("a", "10.9.0.1/24"), "barn", "aa"), announce(t, lan.Host("b", "10.9.0.2/24"), "mast", "bb")
	seen(t, laptop, "both", has("barn", "mast"))
	for _, n := range []*node{a, b} {
		if n.Problem() != "" || n.console() != "" {
			t.Errorf("%s: problem %q, says %q; want nothing", n.Name(), n.Problem(), n.console())
		}
	}
}

// What a node says follows its addresses, its cable and its cluster.
func TestChanges(t *testing.T) {
	t.Parallel()
	lan := lantest.New(t)
	h, laptop := lan.Host("a", "10.9.0.1/24"), lan.Host("laptop", "10.9.0.9/24")
	n := announce(t, h, "barn", "aa")
	got := seen(t, laptop, "first", at("barn", "10.9.0.1"))["barn"]
	if got.Version != "1.2.3" || got.Board != "rpi4" || got.Claimed || got.Port != api.Port || got.ID != "aa" {
		t.Errorf("node = %+v; want what it was told to say", got)
	}
	h.Remove("10.9.0.1/24") // first, or the kernel takes others of its subnet with it
	h.Add("10.9.0.5/24")
	seen(t, laptop, "another address", at("barn", "10.9.0.5"))
	h.Unplug(lan)
	h.Plug(lan)
	seen(t, laptop, "plugged in again", at("barn", "10.9.0.5"))
	n.Set(api.Announcement{Cluster: "home", Role: "server", Claimed: true, ID: "aa"})
	seen(t, laptop, "claimed", func(all map[string]discover.Node) bool {
		return all["barn"].Claimed && all["barn"].Cluster == "home" && all["barn"].Role == "server"
	})
	if n.Name() != "barn" || n.console() != "" {
		t.Errorf("name %q, says %q; want barn and nothing", n.Name(), n.console())
	}
}

// A laptop with a cable to the node and no DHCP: IPv6 has addresses of its own.
func TestNoAddresses(t *testing.T) {
	t.Parallel()
	lan := lantest.New(t)
	announce(t, lan.Host("a"), "barn", "aa")
	got := seen(t, lan.Host("laptop"), "without DHCP", has("barn"))["barn"]
	if a := got.Addresses[0]; !a.IsLinkLocalUnicast() || a.Zone() != "eth0" {
		t.Errorf("address %v; want one of IPv6's own link, with the laptop's interface", a)
	}
}

// Two cables into one network: the node must not take itself for another.
func TestTwoCables(t *testing.T) {
	t.Parallel()
	lan := lantest.New(t)
	h, laptop := lan.Host("a", "10.9.0.1/24"), lan.Host("laptop", "10.9.0.9/24")
	lan.Cable(h, "a2", "eth1", "10.9.0.2/24")
	n := announce(t, h, "barn", "aa")
	seen(t, laptop, "the node", has("barn"))
	h.Add("10.9.0.3/24") // says all again
	seen(t, laptop, "the third address", at("barn", "10.9.0.3"))
	if n.Problem() != "" || n.Name() != "barn" {
		t.Errorf("name %q, problem %q; want barn and none", n.Name(), n.Problem())
	}
}

// Nothing stays behind when a responder ends.
func TestLeaks(t *testing.T) {
	lan := lantest.New(t)
	h, laptop := lan.Host("a", "10.9.0.1/24"), lan.Host("laptop", "10.9.0.9/24")
	before := 0
	for i := range 6 {
		n := announce(t, h, "barn", "aa")
		seen(t, laptop, "running", has("barn"))
		n.stop()
		for deadline := time.Now().Add(patience); i > 0 && runtime.NumGoroutine() > before && time.Now().Before(deadline); {
			runtime.Gosched() // netlink's own goroutines end a moment later
		}
		if i == 0 {
			before = runtime.NumGoroutine()
		}
		if got := runtime.NumGoroutine(); got > before {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines after life %d, %d after the first:\n%s", got, i+1, before, buf[:runtime.Stack(buf, true)])
		}
	}
}
