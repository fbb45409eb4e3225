package boot

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/atomicfile"
	"skerry.internal/skerry/agent/discovery"
	"skerry.internal/skerry/agent/network"
	"skerry.internal/skerry/agent/provision"
)

const versionFile = "/etc/skerry/version"

// announceNode has the node found by its name, from now until it goes down.
func announceNode(s *System) error {
	b, err := provision.Load(stateDir)
	r := discovery.New(discovery.Config{
		Host: s.hostname, Port: api.Port, Use: func(name string) bool { return network.Wired("/sys", name) },
		Named: func(name string) { // skerryd's certificates are valid for it, too
			if err := atomicfile.WriteFile(filepath.Join(runDir, api.LocalNameFile), []byte(name+"\n"), 0o644); err != nil {
				s.Console.Errorf("tell skerryd of the name %s.local: %v", name, err)
			}
		},
		Printf: s.Console.Printf, Errorf: s.Console.Errorf,
	}, s.announcement(b, err != nil))
	s.learn(func(k *known) { k.responder = r })
	go func() {
		defer s.guard()
		r.Run(s.ctx)
	}()
	return err
}

// announcement is what everybody may know. A bundle that cannot be read is one
// all the same: the node has a cluster.
func (s *System) announcement(b *provision.Bundle, unreadable bool) api.Announcement {
	id, _ := os.ReadFile("/run/machine-id")
	a := api.Announcement{Version: readLine(versionFile), Board: s.Args["skerry.board"], Claimed: b != nil || unreadable, ID: publicID(string(id))}
	if b != nil {
		a.Cluster, a.Role = b.Cluster, string(b.Role)
	}
	return a
}

// publicID tells machines apart without naming the machine id, which programs
// use to make secrets of.
func publicID(machineID string) string {
	sum := sha256.Sum256([]byte("skerry discovery " + strings.TrimSpace(machineID)))
	return hex.EncodeToString(sum[:6])
}

func readLine(path string) string {
	data, _ := os.ReadFile(path)
	return strings.TrimSpace(string(data))
}

// nameProblems says that the network knows this node by another name.
func nameProblems(r *discovery.Responder) []api.Problem {
	if r == nil || r.Problem() == "" {
		return nil
	}
	return []api.Problem{{Where: "network", What: r.Problem(), Doing: "it answers to " + r.Name() + ".local"}}
}
