package config

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"time"
)

// Role is what a node is.
type Role string

// RoleServer is the control plane and a worker in one.
const RoleServer Role = "server"

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Role) UnmarshalText(text []byte) error {
	switch *r = Role(text); *r {
	case RoleServer:
		return nil
	case "worker":
		return fmt.Errorf("role worker: not yet; this version knows server only")
	}
	return fmt.Errorf("role %q: want server", text)
}

// Switch is On, Off, or empty where the file says nothing.
type Switch string

// The positions of a Switch.
const (
	On  Switch = "true"
	Off Switch = "false"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Switch) UnmarshalText(text []byte) error {
	if *s = Switch(text); *s != On && *s != Off {
		return fmt.Errorf("got %q, want true or false", text)
	}
	return nil
}

// VLAN is the number of a VLAN (802.1Q), 0 where the file says nothing.
type VLAN int

// UnmarshalText implements encoding.TextUnmarshaler.
func (v *VLAN) UnmarshalText(text []byte) error {
	n, err := strconv.Atoi(string(text))
	if err != nil || n < 1 || n > 4094 {
		return fmt.Errorf("vlan %q: want a number, 1 to 4094", text)
	}
	*v = VLAN(n)
	return nil
}

// MaxPods is the largest number of pods, 0 where the file says nothing.
type MaxPods int

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MaxPods) UnmarshalText(text []byte) error {
	n, err := strconv.Atoi(string(text))
	if err != nil || n < 1 || n > 250 {
		return fmt.Errorf("maxPods %q: want a number, 1 to 250", text)
	}
	*m = MaxPods(n)
	return nil
}

// IPv6 says whether an interface speaks it; empty means IPv6Auto.
type IPv6 string

// Ways of IPv6.
const (
	IPv6Auto IPv6 = "auto"
	IPv6Off  IPv6 = "off"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *IPv6) UnmarshalText(text []byte) error {
	if *i = IPv6(text); *i != IPv6Auto && *i != IPv6Off {
		return fmt.Errorf("ipv6 %q: want auto or off", text)
	}
	return nil
}

// Prefix6 is an IPv6 address with the length of its network's prefix.
type Prefix6 struct{ netip.Prefix }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Prefix6) UnmarshalText(text []byte) (err error) {
	p.Prefix, err = netip.ParsePrefix(string(text))
	if a := p.Addr(); err != nil || !a.Is6() || a.Is4In6() || !a.IsGlobalUnicast() {
		return fmt.Errorf("got %q, want an IPv6 address with the length of its network's prefix, like fd00:1::5/64", text)
	}
	return nil
}

// Addr6 is an IPv6 address of one machine, without a zone.
type Addr6 struct{ netip.Addr }

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Addr6) UnmarshalText(text []byte) (err error) {
	a.Addr, err = netip.ParseAddr(string(text))
	if err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast() {
		return fmt.Errorf("got %q, want an IPv6 address, like fd00:1::1", text)
	}
	return nil
}

// IP is an address of one machine, of either kind, without a zone.
type IP struct{ netip.Addr }

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *IP) UnmarshalText(text []byte) (err error) {
	i.Addr, err = netip.ParseAddr(string(text))
	if err != nil || i.Is4In6() || i.Zone() != "" || i.IsUnspecified() || i.IsMulticast() {
		return fmt.Errorf("got %q, want an address, like 192.168.1.1 or fd00:1::1", text)
	}
	return nil
}

// Secret is a text that must not get into a log by accident.
type Secret string

// String does not tell it.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(secret)"
}

// GoString does not tell it either.
func (s Secret) GoString() string { return s.String() }

// PEM is one or more certificates as text.
type PEM string

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *PEM) UnmarshalText(text []byte) error {
	*p = PEM(text)
	found := false
	for rest := text; ; found = true {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if !found || len(bytes.TrimSpace(rest)) > 0 {
				return fmt.Errorf("ca: want the text of a certificate file, from -----BEGIN CERTIFICATE----- to the end")
			}
			return nil
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("ca: got a %s, want certificates", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("ca: %w", err)
		}
	}
}

// CPU is an amount of processor time in thousandths of a processor, positive
// when it is set.
type CPU int

var milli = regexp.MustCompile(`^[0-9]{1,6}m$`)

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *CPU) UnmarshalText(text []byte) error {
	n, err := strconv.Atoi(string(bytes.TrimSuffix(text, []byte("m"))))
	if !milli.Match(text) || err != nil || n == 0 {
		return fmt.Errorf("amount %q: want thousandths of a processor, like 200m", text)
	}
	*c = CPU(n)
	return nil
}

// Console says which consoles show the screen with the node's state. Empty
// means ConsoleBoth.
type Console string

// Consoles.
const (
	ConsoleBoth   Console = "both"
	ConsoleSerial Console = "serial"
	ConsoleHDMI   Console = "hdmi"
	ConsoleOff    Console = "off"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *Console) UnmarshalText(text []byte) error {
	switch *c = Console(text); *c {
	case ConsoleBoth, ConsoleSerial, ConsoleHDMI, ConsoleOff:
		return nil
	}
	return fmt.Errorf("console %q: want both, serial, hdmi or off", text)
}

// Serial reports whether the screen is shown on the serial line.
func (c Console) Serial() bool { return c != ConsoleHDMI && c != ConsoleOff }

// HDMI reports whether the screen is shown on the display.
func (c Console) HDMI() bool { return c != ConsoleSerial && c != ConsoleOff }

// Watchdog is the time of the hardware watchdog, WatchdogOff, or 0 where the
// file says nothing.
type Watchdog time.Duration

// WatchdogOff is a watchdog that is not to run.
const WatchdogOff Watchdog = -1

// Below the least, one slow turn of init's loop would reset the board.
const (
	minWatchdog = 15
	maxWatchdog = 600
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (w *Watchdog) UnmarshalText(text []byte) error {
	if string(text) == "off" {
		*w = WatchdogOff
		return nil
	}
	n, err := strconv.Atoi(string(text))
	if err != nil || n < minWatchdog || n > maxWatchdog {
		return fmt.Errorf("watchdog %q: want seconds, %d to %d, or off", text, minWatchdog, maxWatchdog)
	}
	*w = Watchdog(time.Duration(n) * time.Second)
	return nil
}

// Overlay is the name of a device-tree overlay, without folder and ending.
type Overlay string

var overlay = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9_.]{0,47}$`)

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *Overlay) UnmarshalText(text []byte) error {
	if *o = Overlay(text); !overlay.Match(text) {
		return fmt.Errorf("overlay %q: want the name of a file in FIRMWARE's folder overlays, without .dtbo: at most 48 letters, digits and -_.", text)
	}
	return nil
}

// atMost keeps the list within the one sector that U-Boot reads it from.
func (Overlay) atMost() int { return 8 }
