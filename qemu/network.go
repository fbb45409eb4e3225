package qemu

import (
	"context"
	"errors"
	"fmt"
)

// Link plugs the network cable in, or pulls it out.
func (vm *VM) Link(ctx context.Context, plugged bool) error {
	if err := vm.qmp.run(ctx, "set_link", map[string]any{"name": "net0", "up": plugged}, nil); err != nil {
		return fmt.Errorf("move the network cable: %w", err)
	}
	return nil
}

// netdev is QEMU's option for the other end of the network cable.
func (vm *VM) netdev() (string, error) {
	c := vm.cfg
	if c.Tap != "" {
		if len(c.Forwards) > 0 {
			return "", errors.New("forward ports: only QEMU's own network does that, and the machine has a tap instead")
		}
		return "tap,id=net0,script=no,downscript=no,ifname=" + escape(c.Tap), nil
	}
	netdev := "user,id=net0"
	for guest, host := range c.Forwards {
		if p := vm.ports[guest]; p != 0 {
			host = p // the port of the last start: a kubeconfig names it
		}
		netdev += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", host, guest)
	}
	return netdev, nil
}
