package qemu

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// Link plugs the network cable in, or pulls it out.
func (vm *VM) Link(ctx context.Context, plugged bool) error {
	if err := vm.qmp.run(ctx, "set_link", map[string]any{"name": "net0", "up": plugged}, nil); err != nil {
		return fmt.Errorf("move the network cable: %w", err)
	}
	return nil
}

// Replug pulls the cable out and plugs it into another network, whose DHCP server
// gives out addresses from first on; it is one in 10.0.2.0/24, as that of the first
// network, QEMU's default. Forwards lead to first, from the same ports.
func (vm *VM) Replug(ctx context.Context, first netip.Addr) error {
	if !vm.cfg.Replug {
		return errors.New("plug into another network: the machine was made without Replug")
	}
	var forwards []map[string]string
	for guest, host := range vm.Ports() {
		forwards = append(forwards, map[string]string{"str": fmt.Sprintf("tcp:127.0.0.1:%d-%s:%d", host, first, guest)})
	}
	err := vm.Link(ctx, false)
	for _, step := range []struct {
		command   string
		arguments map[string]any
	}{
		{"netdev_del", map[string]any{"id": "hub0"}},
		{"netdev_del", map[string]any{"id": "user0"}},
		{"netdev_add", map[string]any{"type": "user", "id": "user0", "dhcpstart": first.String(), "hostfwd": forwards}},
		{"netdev_add", map[string]any{"type": "hubport", "id": "hub0", "hubid": 0, "netdev": "user0"}},
	} {
		if err == nil {
			err = vm.qmp.run(ctx, step.command, step.arguments, nil)
		}
	}
	if err == nil {
		err = vm.Link(ctx, true)
	}
	if err != nil {
		return fmt.Errorf("plug into another network: %w", err)
	}
	return nil
}
