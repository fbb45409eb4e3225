package boot

import (
	"net/http"

	"skerry.internal/skerry/agent/snapshots"
)

// Where skerryd keeps its database and the snapshots of it, and where it is asked
// for one more.
const (
	databaseDir    = stateDir + "/db"
	snapshotDir    = stateDir + "/snapshots"
	snapshotSocket = runDir + "/skerryd.sock"
)

// Snapshots returns what the status API serves to administrators about the
// database. A restore stops skerryd for a moment; pods run on.
func (s *System) Snapshots() map[string]http.Handler {
	server := &snapshots.Server{
		Dir: snapshotDir, Database: databaseDir, Socket: snapshotSocket, Printf: s.Console.Printf,
		Stop:  func() error { return s.units.Stop(skerryd.Name) },
		Start: func() error { return s.units.Restart(skerryd.Name) },
	}
	return server.Handlers()
}
