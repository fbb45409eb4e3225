package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

// Files of a recorded machine.
const (
	logFile    = "writes.log"
	beforeFile = "before.qcow2" // the disk as it was before the log's first entry
)

// Nodes of QEMU's block layer. Errors go between the two: while the disk is
// well, "disk-top" hands requests to "disk-below".
const (
	nodeTop   = "disk-top"
	nodeBelow = "disk-below"
	nodeBad   = "disk-bad"
)

// diskDevice names the disk to QEMU's monitor.
const diskDevice = "disk0"

// layers is the disk, below the recorder if there is one, as dotted options of
// -drive and -blockdev.
func (vm *VM) layers(format, file string) string {
	const recorder = "driver=blklogwrites,discard=unmap,log.driver=file,log.cache.no-flush=on,log-super-update-interval=1,log.filename="
	var options []string
	prefix := ""
	if vm.cfg.Record {
		options = append(options, recorder+escape(vm.path(logFile)))
		if info, err := os.Stat(vm.path(logFile)); err == nil && info.Size() > 0 {
			options = append(options, "log-append=on")
		}
		prefix = "file."
	}
	for _, o := range []string{"driver=" + format, "discard=unmap", "file.driver=file", "file.discard=unmap", "file.filename=" + escape(file)} {
		options = append(options, prefix+o)
	}
	return strings.Join(options, ",")
}

// beginRecord keeps the overlay as it is before the first write, and makes the
// empty log that QEMU wants to find.
func (vm *VM) beginRecord(ctx context.Context, overlay string) error {
	if err := os.WriteFile(vm.path(logFile), nil, 0o600); err != nil {
		return fmt.Errorf("begin write log: %w", err)
	}
	if err := vm.tool(ctx, "cp", "--sparse=always", overlay, beforeFile); err != nil {
		return fmt.Errorf("keep the disk as it was: %w", err)
	}
	return nil
}

// WriteLog is the file in which QEMU records the writes, for package writelog.
func (vm *VM) WriteLog() string { return vm.path(logFile) }

// CopyUnwritten writes the disk as it was before the first recorded write to a raw, sparse file.
func (vm *VM) CopyUnwritten(ctx context.Context, file string) error {
	if err := vm.tool(ctx, "qemu-img", "convert", "-q", "-O", "raw", beforeFile, file); err != nil {
		return fmt.Errorf("copy the disk as it was: %w", err)
	}
	return nil
}

// StallDisk has the disk keep every request waiting, or lets all of them through again.
// Nothing is lost and nothing fails; it only takes long.
func (vm *VM) StallDisk(ctx context.Context, stalled bool) error {
	limits := map[string]any{"bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}
	if stalled {
		limits["bps"] = 1 // a byte a second: the next sector comes in ten minutes
	}
	err := vm.nameDisk(ctx, limits)
	if err == nil {
		err = vm.qmp.run(ctx, "block_set_io_throttle", limits, nil)
	}
	if err != nil {
		return fmt.Errorf("stall the disk: %w", err)
	}
	return nil
}

// nameDisk says in a command's arguments which disk is meant. QEMU knows it by its device,
// which on PCI is one within another, and an SD card by its drive.
func (vm *VM) nameDisk(ctx context.Context, arguments map[string]any) error {
	var disks []struct {
		Device string `json:"device"`
		QDev   string `json:"qdev"`
	}
	if err := vm.qmp.run(ctx, "query-block", nil, &disks); err != nil {
		return err
	}
	for _, d := range disks {
		switch {
		case d.Device == diskDevice:
			arguments["device"] = d.Device
			return nil
		case slices.Contains(strings.Split(d.QDev, "/"), diskDevice):
			arguments["id"] = d.QDev
			return nil
		}
	}
	return fmt.Errorf("QEMU lists no disk %q", diskDevice)
}

// IOKind is a kind of request to a disk.
type IOKind string

// What can fail.
const (
	Reads    IOKind = "read"
	Writes   IOKind = "write"
	Flushes  IOKind = "flush"
	Discards IOKind = "discard"
)

// Fault is which requests fail, with an I/O error.
type Fault struct {
	Kinds  []IOKind
	Sector int64 // only requests that touch this one; 0: all
	Once   bool  // only the first request of each kind
}

// FailDisk has the disk answer requests with I/O errors from now on, instead of
// what it did before. No kinds: it is well again; not so where flushes fail, for QEMU
// flushes before it changes anything: such a disk is bad until the power is cut. Wants Config.Faults.
func (vm *VM) FailDisk(ctx context.Context, fault Fault) error {
	if !vm.cfg.Faults {
		return errors.New("fail the disk: this machine was made without Config.Faults")
	}
	if err := vm.failDisk(ctx, fault); err != nil {
		return fmt.Errorf("fail the disk: %w", err)
	}
	return nil
}

func (vm *VM) failDisk(ctx context.Context, fault Fault) error {
	if err := vm.putBelowTop(ctx, nodeBelow); err != nil {
		return err
	}
	// Left from the last fault, if there was one.
	nodes, err := vm.nodes(ctx)
	if err != nil {
		return err
	}
	if nodes[nodeBad] {
		if err := vm.qmp.run(ctx, "blockdev-del", map[string]any{"node-name": nodeBad}, nil); err != nil {
			return err
		}
	}
	if len(fault.Kinds) == 0 {
		return nil
	}
	var rules []map[string]any
	for _, kind := range fault.Kinds {
		rule := map[string]any{"event": "none", "iotype": string(kind), "errno": 5, "once": fault.Once}
		if fault.Sector != 0 {
			rule["sector"] = fault.Sector
		}
		rules = append(rules, rule)
	}
	bad := map[string]any{"driver": "blkdebug", "node-name": nodeBad, "discard": "unmap", "image": nodeBelow, "inject-error": rules}
	if err := vm.qmp.run(ctx, "blockdev-add", bad, nil); err != nil {
		return err
	}
	return vm.putBelowTop(ctx, nodeBad)
}

func (vm *VM) putBelowTop(ctx context.Context, node string) error {
	top := map[string]any{"driver": "raw", "node-name": nodeTop, "discard": "unmap", "file": node}
	return vm.qmp.run(ctx, "blockdev-reopen", map[string]any{"options": []any{top}}, nil)
}

func (vm *VM) nodes(ctx context.Context) (map[string]bool, error) {
	var list []struct {
		Name string `json:"node-name"`
	}
	if err := vm.qmp.run(ctx, "query-named-block-nodes", map[string]any{"flat": true}, &list); err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, n := range list {
		names[n.Name] = true
	}
	return names, nil
}
