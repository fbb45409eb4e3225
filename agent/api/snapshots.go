package api

import "time"

// Snapshot is a whole copy of a node's database that lies on the node.
type Snapshot struct {
	Name   string    `json:"name"`
	Time   time.Time `json:"time"`   // when it was taken, by the node's clock
	Reason string    `json:"reason"` // daily, request, update, ...
	Bytes  int64     `json:"bytes"`
}

// Restored is what a node says after it has put a database in place.
type Restored struct {
	From  string `json:"from"`  // a snapshot's name, or "upload"
	Aside string `json:"aside"` // the folder with the database that was in use until then
}

// SHA256Header is the header of a downloaded snapshot, and the name of the
// parameter of an uploaded database, with the sum of its bytes in hex.
const (
	SHA256Header    = "Skerry-Sha256"
	SHA256Parameter = "sha256"
)
