package boot

import (
	"fmt"
	"net"
	"sync"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/claim"
	"skerry.internal/skerry/agent/clock"
	"skerry.internal/skerry/agent/provision"
)

// onClaim is what starts when the node gets its cluster, and what Root has left
// out until then.
var onClaim = []Step{
	{Name: "start status API", Optional: true, Run: func(s *System) error { return s.startStatus() }},
	{Name: "start skerryd", Optional: true, Limit: 11 * time.Minute, Run: func(s *System) error { return s.startUnit(skerryd, 10*time.Minute) }},
}

// claiming is what the console shows of a node without a cluster.
type claiming struct {
	mu                sync.Mutex // guards all that follows
	fingerprint, code string     // empty when there is nothing to claim
}

func (c *claiming) set(fingerprint, code string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fingerprint, c.code = fingerprint, code
}

func waitClaim(s *System) error {
	return s.waitClaim(stateDir, fmt.Sprintf(":%d", api.Port), func(b *provision.Bundle) {
		s.join(b, s.raise)
		s.Run(onClaim) // all of it is optional
	})
}

// waitClaim serves claims, in the background, when the node has no cluster, and
// calls then with what has come. A bundle that cannot be read is no reason to:
// somebody owns this node.
func (s *System) waitClaim(state, address string, then func(*provision.Bundle)) error {
	if b, err := provision.Load(state); b != nil || err != nil {
		return err
	}
	server, err := claim.New(claim.Config{
		Node:   api.Unclaimed{Name: s.hostname, Board: s.Args["skerry.board"], Version: readLine(versionFile)},
		Keep:   func(data []byte) error { return provision.Store(state, data) },
		Show:   s.showClaim,
		Printf: s.Console.Printf, Errorf: s.Console.Errorf,
	})
	if err != nil {
		return err
	}
	s.unclaimed = true
	go func() {
		defer s.guard()
		if b := s.takeClaim(server, address); b != nil {
			then(b)
		}
	}()
	return nil
}

func (s *System) showClaim(fingerprint, code string) {
	s.Console.Printf("this node belongs to no cluster; on your machine type: skerry cluster claim CLUSTER %s", s.hostname)
	s.Console.Printf("fingerprint %s  code %s", fingerprint, code)
	s.claiming.set(fingerprint, code) // last: whoever sees it may look at the lines
}

// takeClaim waits for the claim, whatever goes wrong; nil means that the node
// goes down.
func (s *System) takeClaim(server *claim.Server, address string) *provision.Bundle {
	for {
		b, err := s.serveClaims(server, address)
		if b != nil || s.ctx.Err() != nil {
			return b
		}
		s.Console.Errorf("claim: %v; trying again", err)
		select {
		case <-time.After(10 * time.Second):
		case <-s.ctx.Done():
			return nil
		}
	}
}

func (s *System) serveClaims(server *claim.Server, address string) (*provision.Bundle, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	defer l.Close()
	return server.Serve(s.ctx, l)
}

// join makes a node of a cluster of this one.
func (s *System) join(b *provision.Bundle, raise func(time.Time) error) {
	s.claiming.set("", "")
	s.floor = clock.Floor(s.floor, b.Created)
	if err := raise(s.floor); err != nil {
		s.Console.Errorf("set clock to the bundle's creation: %v", err)
	}
	if r := s.recall().responder; r != nil {
		r.Set(s.announcement(b, false))
	}
}

// claimNotice is what the console shows first on a node without a cluster.
func (s *System) claimNotice() []string {
	s.claiming.mu.Lock()
	defer s.claiming.mu.Unlock()
	if s.claiming.code == "" {
		return nil
	}
	return []string{
		"This node belongs to no cluster. On your machine type:",
		"  skerry cluster claim CLUSTER " + s.hostname,
		"fingerprint " + s.claiming.fingerprint + "   code " + s.claiming.code,
	}
}
