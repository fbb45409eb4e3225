package boot

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/clock"
	"skerry.internal/skerry/agent/config"
	"skerry.internal/skerry/agent/pki"
	"skerry.internal/skerry/agent/provision"
	"skerry.internal/skerry/agent/status"
)

// startStatus starts the status API, if this node belongs to a cluster and it
// is not running yet. So it may be called again after a claim.
func (s *System) startStatus() error {
	return s.startStatusOn(fmt.Sprintf(":%d", api.Port), stateDir)
}

func (s *System) startStatusOn(address, state string) error {
	s.starting.Lock()
	defer s.starting.Unlock()
	if s.serving {
		return nil
	}
	b, err := provision.Load(state)
	if err != nil {
		return err
	}
	if b == nil {
		s.Console.Printf("status API is not started: this node belongs to no cluster")
		return nil
	}
	s.setFloor(b.Created) // after a claim
	s.learn(func(k *known) { k.cluster, k.role = b.Cluster, string(b.Role) })
	cfg, err := s.statusConfig(b)
	if err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(s.ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("start status API: %w", err)
	}
	s.serving = true
	go s.serveStatus(l, cfg)
	s.Console.Printf("status API on %s", l.Addr())
	return nil
}

// serveStatus serves until the system goes down.
func (s *System) serveStatus(l net.Listener, cfg status.Config) {
	defer s.guard()
	defer l.Close()
	for s.ctx.Err() == nil {
		if err := status.New(cfg).Serve(s.ctx, l); err != nil && s.ctx.Err() == nil {
			s.Console.Errorf("%v; trying again", err) // out of file descriptors, say
			select {
			case <-time.After(10 * time.Second):
			case <-s.ctx.Done():
			}
		}
	}
}

func (s *System) statusConfig(b *provision.Bundle) (status.Config, error) {
	root, err := pki.ParseCert(b.CACert)
	if err != nil {
		return status.Config{}, fmt.Errorf("start status API: the cluster's certificate: %w", err)
	}
	authority, err := pki.ParseAuthority(b.IntermediateCert, b.IntermediateKey)
	if err != nil {
		return status.Config{}, fmt.Errorf("start status API: the node's authority: %w", err)
	}
	s.learn(func(k *known) { k.authorityEnds = authority.Cert.NotAfter })
	return status.Config{
		Root: root, Authority: authority,
		Names: func() ([]string, []net.IP) { return allNames(s.recall()), addresses() },
		Now: func() time.Time {
			return clock.Floor(time.Now(), s.recall().floor, root.NotBefore, authority.Cert.NotBefore)
		},
		Status: s.Status, Units: []string{containerd.Name, skerryd.Name}, UnitLog: s.units.WriteLog,
		Configuration: runDir + "/" + config.FileName,
		Reboot: func(off bool) error {
			r := Request{unix.LINUX_REBOOT_CMD_RESTART, "reboot, by the status API"}
			if off {
				r = Request{unix.LINUX_REBOOT_CMD_POWER_OFF, "power off, by the status API"}
			}
			s.request(r)
			return nil
		},
		Reset:  s.askReset,
		Extra:  s.Snapshots(),
		Printf: s.Console.Printf, Errorf: s.Console.Errorf,
	}, nil
}

// allNames are those that this machine answers to, its own first: where another
// node has that, there is a second one in NAME.local.
func allNames(k known) []string {
	names := []string{k.hostname}
	if k.responder != nil {
		if local := k.responder.Name(); local != "" && local != k.hostname {
			names = append(names, local)
		}
	}
	return names
}

// addresses are all that this machine can be reached at.
func addresses() []net.IP {
	var list []net.IP
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			list = append(list, n.IP)
		}
	}
	return list
}
