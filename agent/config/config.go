// Package config defines skerry.yaml, the one file a person edits on a node's
// FIRMWARE partition. A mistake never stops a node: each is named with its
// line, and the rest of the file takes effect. What holds a mistake is ignored
// as a whole up to its key or, in a list, its entry.
//
// Left out: reading and writing files, so that init, skerryd and the operator's
// command judge a file with the same code wherever its bytes come from.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
)

// FileName is the name on FIRMWARE.
const FileName = "skerry.yaml"

// MaxSize is the largest file that is read, in bytes.
const MaxSize = 1 << 20

// Config is the node's configuration. Zero values mean the documented default.
// docs/skerry.yaml.md is made from these comments.
type Config struct {
	// The node's name, in Kubernetes too: at most 63 lower-case letters, digits
	// and hyphens. Without it: skerry- and the end of the first MAC address.
	Hostname Hostname `yaml:"hostname"`

	// How the node is reached. Without it: every wired interface asks for an
	// address by DHCP.
	Network Network `yaml:"network"`

	// Time servers (NTP), names or addresses, with a port where it is not 123. Without
	// them: those that DHCP names.
	NTP []Server `yaml:"ntp"`

	// Where images of a registry are pulled from. Without it: from the
	// registry's own name over HTTPS.
	Registries []Registry `yaml:"registries"`

	// Labels of the Node object, name: value. A label that leaves this file
	// leaves the Node.
	Labels Labels `yaml:"labels"`

	// Taints of the Node object, each as in kubectl taint: name=value:effect or
	// name:effect, with the effect NoSchedule, PreferNoSchedule or NoExecute. A
	// taint that leaves this file leaves the Node.
	Taints []Taint `yaml:"taints"`

	// What pods can't have, so that they end before the system does.
	Reserved Reserved `yaml:"reserved"`
}

// Network is the node's network.
type Network struct {
	// Interfaces that are not to use DHCP.
	Interfaces []Interface `yaml:"interfaces"`
}

// Interface is one wired interface with a fixed address.
type Interface struct {
	// Its name, as the console shows it. Either this or mac.
	Name string `yaml:"name"`
	// Its hardware address, which stays when names change.
	MAC MAC `yaml:"mac"`
	// Its IPv4 address with the length of the network's prefix.
	Address netip.Prefix `yaml:"address"`
	// The router to other networks. Without it: none is reached.
	Gateway netip.Addr `yaml:"gateway"`
	// Name servers.
	DNS []netip.Addr `yaml:"dns"`
	// The domain that names without a dot are looked up in.
	Domain string `yaml:"domain"`
	// The largest packet in bytes, 576 to 9216. Without it: the interface's own.
	MTU int `yaml:"mtu"`
}

func (i *Interface) validate() error {
	switch {
	case (i.Name == "") == (i.MAC == ""):
		return errors.New("interface: want either name or mac")
	case !i.Address.IsValid():
		return errors.New("interface: no address; without one leave the interface out, and it uses DHCP")
	case i.Gateway.IsValid() && (!i.Address.Masked().Contains(i.Gateway) || i.Gateway == i.Address.Addr()):
		return fmt.Errorf("gateway %v: want another address in the interface's network %v", i.Gateway, i.Address.Masked())
	case i.MTU != 0 && (i.MTU < 576 || i.MTU > 9216):
		return fmt.Errorf("mtu %d: want 576 to 9216", i.MTU)
	case strings.ContainsAny(i.Domain, " \t\n"):
		return fmt.Errorf("domain %q: want one name, like farm.example.org", i.Domain)
	}
	return nil
}

// Registry is one registry.
type Registry struct {
	// The registry, as image names spell it.
	Host ImageHost `yaml:"host"`
	// URLs that are tried in order before the host itself.
	Mirrors []URL `yaml:"mirrors"`
}

func (r *Registry) validate() error {
	if r.Host == "" {
		return errors.New("registry: no host; want for example docker.io")
	}
	return nil
}

// Reserved is kept from pods.
type Reserved struct {
	// Memory for the system and skerryd, like 400Mi. Without it: 400Mi, at most
	// 40 percent of what there is.
	Memory Bytes `yaml:"memory"`
}

// Hostname is an RFC 1123 label.
type Hostname string

var hostname = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *Hostname) UnmarshalText(text []byte) error {
	*h = Hostname(text)
	return CheckHostname(string(text))
}

// CheckHostname reports whether s can be a node's name (RFC 1123, one label).
func CheckHostname(s string) error {
	if !hostname.MatchString(s) {
		return fmt.Errorf("hostname %q: want at most 63 lower-case letters, digits and hyphens, like barn-1", s)
	}
	return nil
}

// Server is a host name or an address, maybe with a port.
type Server string

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Server) UnmarshalText(text []byte) error {
	*s = Server(text)
	host := string(text)
	if h, port, err := net.SplitHostPort(host); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
			host = h
		}
	}
	if _, err := netip.ParseAddr(host); err != nil && (host == "" || strings.ContainsAny(host, "/: \t\n")) {
		return fmt.Errorf("server %q: want a name or an address, like ntp.example.org or 10.0.0.1:123", text)
	}
	return nil
}

// MAC is a hardware address in the form of net.HardwareAddr.String.
type MAC string

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(text []byte) error {
	mac, err := net.ParseMAC(string(text))
	if err != nil || len(mac) != 6 {
		return fmt.Errorf("mac %q: want six pairs of digits, like dc:a6:32:01:02:03", text)
	}
	*m = MAC(mac.String())
	return nil
}

// ImageHost is the part of an image's name that says its registry.
type ImageHost string

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *ImageHost) UnmarshalText(text []byte) error {
	*h = ImageHost(text)
	if s := string(text); s == "" || strings.ContainsAny(s, "/ \\\"\n") || s[0] == '.' {
		return fmt.Errorf("registry host %q: want a name as in an image, like docker.io or 10.0.0.5:5000", s)
	}
	return nil
}

// URL is one of HTTP or HTTPS.
type URL string

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *URL) UnmarshalText(text []byte) error {
	*u = URL(text)
	p, err := url.Parse(string(text))
	if err != nil || p.Host == "" || p.Scheme != "http" && p.Scheme != "https" || strings.ContainsAny(string(text), "\"\n") {
		return fmt.Errorf("mirror %q: want a URL like https://mirror.lan:5000", text)
	}
	return nil
}

// Labels are labels of a Kubernetes object.
type Labels map[string]string

// The syntax of Kubernetes' qualified names and label values
// (https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set).
var (
	part   = `[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?`
	name   = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?` + part + `$`)
	value_ = regexp.MustCompile(`^(` + part + `)?$`)
)

// check says what is wrong with one label.
func (Labels) check(k, v string) error {
	if !name.MatchString(k) {
		return fmt.Errorf("label %q: want a name like example.org/site", k)
	}
	if !value_.MatchString(v) {
		return fmt.Errorf("label %s: value %q: want at most 63 letters, digits and -_.", k, v)
	}
	return nil
}

// Taint is a taint of a Node.
type Taint struct{ Key, Value, Effect string }

// UnmarshalText implements encoding.TextUnmarshaler.
func (t *Taint) UnmarshalText(text []byte) error {
	key, effect, ok := strings.Cut(string(text), ":")
	t.Effect = effect
	t.Key, t.Value, _ = strings.Cut(key, "=")
	if !ok || !name.MatchString(t.Key) || !value_.MatchString(t.Value) || effect != "NoSchedule" && effect != "PreferNoSchedule" && effect != "NoExecute" {
		return fmt.Errorf("taint %q: want name=value:effect or name:effect, with the effect NoSchedule, PreferNoSchedule or NoExecute", text)
	}
	return nil
}

func (t Taint) String() string {
	if t.Value == "" {
		return t.Key + ":" + t.Effect
	}
	return t.Key + "=" + t.Value + ":" + t.Effect
}

// Bytes is an amount of memory, positive when it is set.
type Bytes int64

var amount = regexp.MustCompile(`^([0-9]{1,9})(Ki|Mi|Gi)$`)

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bytes) UnmarshalText(text []byte) error {
	m := amount.FindSubmatch(text)
	if m == nil {
		return fmt.Errorf("amount %q: want a number with Ki, Mi or Gi, like 400Mi", text)
	}
	n, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil || n == 0 {
		return fmt.Errorf("amount %q: want more than nothing, like 400Mi", text)
	}
	*b = Bytes(n << map[string]int{"Ki": 10, "Mi": 20, "Gi": 30}[string(m[2])])
	return nil
}

// Mistake is one thing that is wrong in a file, and its line (from 1; 0 means
// the file as a whole).
type Mistake struct {
	Line int
	Text string
}

func (m Mistake) String() string {
	if m.Line == 0 {
		return fmt.Sprintf("%s: %s", FileName, m.Text)
	}
	return fmt.Sprintf("%s:%d: %s", FileName, m.Line, m.Text)
}
