package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
)

// dhcp keeps a lease for one interface while it has a link.
func (m *Manager) dhcp(ctx context.Context, link netlink.Link, p *port) {
	a := link.Attrs()
	var raw *nclient4.Lease // for renewal
	var lease Lease
	var given time.Time
	failures := 0
	for {
		age := time.Since(given)
		renewing := raw != nil && age < lease.rebind
		next, nraw, err := m.ask(ctx, link, raw, renewing)
		var nak *nclient4.ErrNak
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			next.override(p.entry)
			err = m.apply(link, next)
			if errors.Is(err, errRoutes) { // tried again when the lease is renewed
				m.cfg.Errorf("network: %v", err)
				err = nil
			}
			if err != nil {
				failures++
				break
			}
			if raw == nil {
				m.publish() // the same lease as before the cable was pulled, maybe: time servers can be asked again
			}
			failures = 0
			raw, lease, given = nraw, next, time.Now()
		case errors.As(err, &nak):
			raw = nil // start over at once
			failures++
		default:
			failures++
		}
		wait := min(time.Second<<min(failures, 6), minLease)
		switch {
		case err != nil && (failures == 1 || failures%60 == 0):
			m.cfg.Printf("network: %s: no lease yet: %v", a.Name, err)
		case err == nil || raw != nil && time.Since(given) < lease.expire:
			wait = lease.wait(time.Since(given))
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// ask runs one exchange with the server. The socket is open only meanwhile:
// while it is, every IPv4 packet is copied to it.
func (m *Manager) ask(ctx context.Context, link netlink.Link, old *nclient4.Lease, renew bool) (Lease, *nclient4.Lease, error) {
	name, mac := link.Attrs().Name, link.Attrs().HardwareAddr
	c, err := nclient4.New(name, nclient4.WithTimeout(2*time.Second), nclient4.WithRetry(2))
	if err != nil {
		return Lease{}, nil, fmt.Errorf("open DHCP client: %w", err)
	}
	defer c.Close()
	mods := []dhcpv4.Modifier{dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer,
		dhcpv4.OptionDomainName, dhcpv4.OptionNTPServers, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionClasslessStaticRoute)}
	if m.cfg.Hostname != "" {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(m.cfg.Hostname)))
	}
	var got *nclient4.Lease
	if renew {
		got, err = c.Renew(ctx, old, mods...)
	} else {
		wish := mods
		// The address of last time, if it is still free.
		if s, err := load(m.saved(link), mac.String()); err == nil && s != nil {
			wish = append(slices.Clone(mods), dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(s.Address.Addr().AsSlice())))
		}
		var offer *dhcpv4.DHCPv4
		if offer, err = c.DiscoverOffer(ctx, wish...); err == nil {
			got, err = c.RequestFromOffer(ctx, offer, mods...)
		}
	}
	if err != nil {
		return Lease{}, nil, err
	}
	l, err := fromACK(name, mac, got.ACK)
	return l, got, err
}

// useSaved puts the lease of an earlier boot to use if there is none by now.
func (m *Manager) useSaved(ctx context.Context, link netlink.Link) {
	a := link.Attrs()
	if ctx.Err() != nil {
		return
	}
	l, err := load(m.saved(link), a.HardwareAddr.String())
	if err != nil {
		m.cfg.Errorf("network: %v", err)
	}
	if l == nil {
		return
	}
	l.Interface = a.Name
	m.mu.Lock()
	if p := m.ports[a.Index]; p != nil {
		l.override(p.entry)
	}
	m.mu.Unlock()
	if err := m.apply(link, *l); err != nil {
		m.cfg.Errorf("network: %v", err)
	}
}
