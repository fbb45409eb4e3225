// Package api defines what a node's status API says and takes: the documents
// that init serves, `skerry node` and `skerry discover` read, and the node's own
// console shows. One definition, so that both ends and the screen agree.
//
// Left out: serving, asking and showing.
package api

import (
	"net/netip"
	"time"
)

// Port is the TCP port of the status API, on every address of a node.
const Port = 6442

// Status is all that a node says of itself. It is made whole while skerryd is
// dead: what only skerryd knows is in its unit's Status.
type Status struct {
	Time    time.Time     `json:"time"`   // the node's own clock
	Uptime  time.Duration `json:"uptime"` // since the kernel's start, in nanoseconds
	Node    Node          `json:"node"`
	Version Version       `json:"version"`
	Slot    string        `json:"slot"` // the one that runs: a or b
	Slots   []Slot        `json:"slots"`
	Steps   []Step        `json:"steps"` // of this boot, in their order
	Units   []Unit        `json:"units"` // in the order of their start
	Memory  Memory        `json:"memory"`
	State   FileSystem    `json:"state"` // the partition STATE
	Clock   Clock         `json:"clock"`
	Network Network       `json:"network"`
	// Mistakes in skerry.yaml.
	Mistakes []Mistake `json:"mistakes,omitempty"`
	// Problems is what is wrong now, the worst first. An empty list means that
	// the node is well.
	Problems []Problem `json:"problems,omitempty"`
}

// Node is who the node is.
type Node struct {
	Name      string `json:"name"`
	Cluster   string `json:"cluster,omitempty"` // empty: it belongs to none yet
	Role      string `json:"role,omitempty"`
	Board     string `json:"board,omitempty"` // as boot.scr has found out
	MachineID string `json:"machineID,omitempty"`
}

// Version is what runs.
type Version struct {
	Skerry string `json:"skerry"`
	Kernel string `json:"kernel"`
	Arch   string `json:"arch"` // as Go names it
}

// Slot is one of the two systems on the card.
type Slot struct {
	Name    string `json:"name"`              // a or b
	Status  string `json:"status"`            // empty, ok or bad (package slots)
	Good    bool   `json:"good"`              // boots when there is no trial
	Trial   bool   `json:"trial"`             // is on trial
	Version string `json:"version,omitempty"` // of what is in it, where that can be read
}

// Step is one step of the boot.
type Step struct {
	Name     string        `json:"name"`
	Phase    string        `json:"phase"`           // initramfs or root
	Start    time.Duration `json:"start"`           // after the kernel's start, in nanoseconds
	Took     time.Duration `json:"took"`            // nanoseconds
	Error    string        `json:"error,omitempty"` // why it failed
	Running  bool          `json:"running,omitempty"`
	Optional bool          `json:"optional,omitempty"`
}

// Unit is a program that init keeps alive.
type Unit struct {
	Name     string    `json:"name"`
	State    string    `json:"state"`            // of package supervise
	Status   string    `json:"status,omitempty"` // what it says of itself (STATUS=)
	PID      int       `json:"pid,omitempty"`
	Restarts int       `json:"restarts"` // since the boot
	Since    time.Time `json:"since"`    // of its state
	// LastExit is how its last process ended, with the time.
	LastExit string `json:"lastExit,omitempty"`
	// Retry is when it is started again, if it is waiting.
	Retry time.Time `json:"retry,omitzero"`
}

// Memory in bytes.
type Memory struct {
	Total     int64 `json:"total"`
	Available int64 `json:"available"`
	SwapTotal int64 `json:"swapTotal"` // compressed memory (zram), of uncompressed bytes
	SwapFree  int64 `json:"swapFree"`
}

// FileSystem is a mounted file system, in bytes.
type FileSystem struct {
	Size       int64 `json:"size"`
	Free       int64 `json:"free"`
	Inodes     int64 `json:"inodes"`
	InodesFree int64 `json:"inodesFree"`
	ReadOnly   bool  `json:"readOnly"`
}

// Clock says where the time comes from.
type Clock struct {
	Source string    `json:"source"`           // ntp, rtc, saved or build
	Server string    `json:"server,omitempty"` // the time server that answered last
	Synced time.Time `json:"synced,omitzero"`  // when it did
}

// Network is how the node is reached.
type Network struct {
	Address    netip.Addr  `json:"address"` // the node's own, invalid without one
	Interfaces []Interface `json:"interfaces"`
}

// Interface is a network interface of the hardware.
type Interface struct {
	Name      string         `json:"name"`
	MAC       string         `json:"mac"`
	Plugged   bool           `json:"plugged"` // a cable is in
	Addresses []netip.Prefix `json:"addresses,omitempty"`
}

// Mistake is one thing that is wrong in skerry.yaml.
type Mistake struct {
	Line int    `json:"line"` // from 1; 0: the file as a whole
	Text string `json:"text"`
}

// Problem is one thing that is wrong, in words for whoever stands before it.
type Problem struct {
	Where string `json:"where"`          // like network, clock, STATE, unit skerryd
	What  string `json:"what"`           // like no cable is plugged in
	Doing string `json:"does,omitempty"` // what the node does about it, or what a person must do
}

// Error is the body of an answer that refuses or reports a failure.
type Error struct {
	Error string `json:"error"`
}
