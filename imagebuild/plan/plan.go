// Package plan is what building an image means, as data: the programs that are
// compiled, the limits that an image must keep, and ordered steps with a runner
// that shows how far they are.
//
// Left out: doing any of it; that is package image.
package plan

import (
	"context"
	"fmt"
	"strings"

	"skerry.internal/skerry/boards"
	"skerry.internal/skerry/imagebuild/disk"
)

// Step is one named piece of work.
type Step struct {
	Name string
	Run  func(context.Context, *Progress) error
}

// Program is one of the Go programs in an image.
type Program struct {
	Name   string // of the file
	Import string
	Dest   string // folder in the root file system
	CGO    bool   // needs the C cross compiler; linked statically all the same
	Tags   []string
	Vars   []string // linker -X
	// Small has the compiler inline nothing: a tenth less, at some speed.
	// Its own lists are sorted with sort.Slice, which is one function for all types.
	Small bool
	Limit int64 // bytes; 0 means none
}

const (
	cni = "usr/libexec/cni"

	// KubernetesVersion is what the API server says it is.
	KubernetesVersion = "v1.37.2"
)

// Programs lists the Go programs of every image. A program that this system
// does not need is not in it, and parts of programs that it does not need are
// left out by tags.
var Programs = []Program{
	{Name: "init", Import: "skerry.internal/skerry/agent/cmd/init", Dest: "usr/bin", Limit: 8_000_000,
		Tags: []string{"nethttpomithttp2"}, Small: true}, // its status API speaks HTTP/1.1
	{Name: "pause", Import: "skerry.internal/skerry/imagebuild/cmd/pause"}, // goes into a container image
	{Name: "bridge", Import: "github.com/containernetworking/plugins/plugins/main/bridge", Dest: cni},
	{Name: "host-local", Import: "github.com/containernetworking/plugins/plugins/ipam/host-local", Dest: cni},
	{Name: "portmap", Import: "github.com/containernetworking/plugins/plugins/meta/portmap", Dest: cni},
	{Name: "containerd", Import: "github.com/containerd/containerd/v2/cmd/containerd", Dest: "usr/bin", Tags: containerdTags,
		Vars: []string{"github.com/containerd/containerd/v2/version.Version=v2.4.2"}},
	{Name: "containerd-shim-runc-v2", Import: "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", Dest: "usr/bin", Tags: containerdTags},
	{Name: "skerryd", Import: "skerry.internal/skerry/agent/cmd/skerryd", Dest: "usr/bin", CGO: true,
		Tags: []string{"netgo", "osusergo", "sqlite_omit_load_extension"},
		Vars: []string{
			"k8s.io/component-base/version.gitVersion=" + KubernetesVersion,
			"k8s.io/component-base/version.gitMajor=1",
			"k8s.io/component-base/version.gitMinor=37",
			"k8s.io/component-base/version.gitTreeState=clean",
		}},
}

var containerdTags = []string{"no_btrfs", "no_devmapper", "no_tracing", "no_zfs"}

// Limits. An image that outgrows one fails to build.
const (
	MaxCompressed = 120 << 20
	MaxRoot       = boards.SlotSize - boards.SlotBootSize
)

// Plan is all there is to know about a build before it starts.
type Plan struct {
	Board    *boards.Board
	Packages []string // name and version
	Tools    []string
	Without  []string // programs that are left out
	Steps    []Step
}

// Programs returns the programs of this plan.
func (p *Plan) Programs() []Program {
	var out []Program
next:
	for _, prog := range Programs {
		for _, w := range p.Without {
			if prog.Name == w {
				continue next
			}
		}
		out = append(out, prog)
	}
	return out
}

// String is the plan for people.
func (p *Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "image for %s (%s, %s)\n\nprograms\n", p.Board.Name, p.Board.Title, p.Board.Arch.Name)
	for _, prog := range p.Programs() {
		dest := "/" + prog.Dest + "/" + prog.Name
		if prog.Dest == "" {
			dest = "container image"
		}
		fmt.Fprintf(&b, "  %-24s %s\n", prog.Name, dest)
	}
	fmt.Fprintf(&b, "\nDebian packages\n")
	for _, pkg := range p.Packages {
		fmt.Fprintf(&b, "  %s\n", pkg)
	}
	fmt.Fprintf(&b, "\ntools of the build\n")
	for _, pkg := range p.Tools {
		fmt.Fprintf(&b, "  %s\n", pkg)
	}
	fmt.Fprintf(&b, "\ndisk\n")
	for _, part := range disk.Partitions() {
		fmt.Fprintf(&b, "  %d %-8s type %02x  %4d MiB at %4d MiB\n", part.Number, part.Name, part.Type, part.Size/boards.MiB, part.Start/boards.MiB)
	}
	fmt.Fprintf(&b, "\nsteps\n")
	for i, s := range p.Steps {
		fmt.Fprintf(&b, "  %2d %s\n", i+1, s.Name)
	}
	return b.String()
}
