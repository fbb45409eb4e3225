package boot

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/imagebuild/claim"
	"skerry.internal/skerry/imagebuild/cluster"
)

// A card without a bundle is claimed over the network; skerryd is left to the
// claim.
func TestWaitClaim(t *testing.T) {
	s, console := system(t)
	t.Cleanup(s.cancel)
	s.hostname = "barn-1"
	l, err := net.Listen("tcp", "127.0.0.1:0") // a free port
	if err != nil {
		t.Fatal(err)
	}
	address, state := l.Addr().String(), t.TempDir()
	l.Close()
	var raised time.Time
	joined := make(chan *provision.Bundle, 1)
	if err := s.waitClaim(state, address, func(b *provision.Bundle) {
		s.join(b, func(floor time.Time) error { raised = floor; return nil })
		joined <- b
	}); err != nil {
		t.Fatal(err)
	}
	if err := startSkerryd(s); err != nil || !s.unclaimed {
		t.Errorf("startSkerryd() = %v, unclaimed %v; want it left to the claim", err, s.unclaimed)
	}
	var fingerprint, code string
	for deadline := time.Now().Add(time.Minute); code == "" && time.Now().Before(deadline); {
		s.claiming.mu.Lock()
		fingerprint, code = s.claiming.fingerprint, s.claiming.code
		s.claiming.mu.Unlock()
	}
	if got := console(); !strings.Contains(got, "fingerprint "+fingerprint+"  code "+code+"\n") || !strings.Contains(got, "skerry cluster claim CLUSTER barn-1\n") {
		t.Errorf("console = %q; want what to type", got)
	}
	if notice := strings.Join(s.claimNotice(), "\n"); !strings.Contains(notice, fingerprint) || !strings.Contains(notice, code) {
		t.Errorf("claimNotice() = %q; want fingerprint and code", notice)
	}
	c, err := cluster.Create(t.TempDir(), "home", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	made := time.Now().Add(time.Hour)
	bundle, err := c.Bundle(made)
	if err != nil {
		t.Fatal(err)
	}
	if err := claim.Send(t.Context(), address, fingerprint, code, bundle); err != nil {
		t.Fatal(err)
	}
	if b := <-joined; b.Cluster != "home" || !raised.Equal(b.Created) || !s.floor.Equal(b.Created) {
		t.Errorf("joined %+v, clock raised to %v; want home, and the bundle's creation", b, raised)
	}
	if notice := s.claimNotice(); notice != nil {
		t.Errorf("claimNotice() = %q after the claim; want none", notice)
	}
	if b, err := provision.Load(state); err != nil || b == nil {
		t.Errorf("Load() = %v, %v; want the bundle", b, err)
	}
	if a := s.announcement(nil, true); !a.Claimed {
		t.Errorf("announcement() of a bundle that can't be read = %+v; want claimed", a)
	}
}

// A node with a cluster serves no claims, also when its bundle is damaged.
func TestClaimedServesNone(t *testing.T) {
	c, err := cluster.Create(t.TempDir(), "home", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	good, err := c.Bundle(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"whole": string(good), "damaged": "{", "empty": ""} {
		s, console := system(t)
		t.Cleanup(s.cancel)
		state := t.TempDir()
		if err := os.WriteFile(filepath.Join(state, provision.FileName), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		err := s.waitClaim(state, "127.0.0.1:0", func(*provision.Bundle) { t.Errorf("%s: claimed", name) })
		if (err == nil) != (name == "whole") || s.unclaimed || strings.Contains(console(), "fingerprint") {
			t.Errorf("%s: waitClaim() = %v, unclaimed %v; want nothing served", name, err, s.unclaimed)
		}
	}
}
