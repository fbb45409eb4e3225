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
	// What the node is. server, the only one there is yet, is also what it is
	// without this key: the cluster's control plane, which runs pods too.
	Role Role `yaml:"role"`

	// The node's name, in Kubernetes too: at most 63 lower-case letters, digits
	// and hyphens. Without it: skerry- and the end of the first MAC address.
	Hostname Hostname `yaml:"hostname"`

	// How the node is reached. Without it: every wired interface asks for an
	// address by DHCP.
	Network Network `yaml:"network"`

	// Time servers (NTP), names or addresses, with a port where it is not 123. Without
	// them: those that DHCP names.
	NTP []Server `yaml:"ntp"`

	// Where images of a registry are pulled from, and as whom. Without it: from the
	// registry's own name over HTTPS, as nobody.
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

	// The most pods that run at a time, 1 to 250; new ones wait, and of those that run some end when this is
	// lowered. Without it: one for each 96 MiB of memory, 12 to 110. Each takes 12 MiB of the system's memory, besides its own.
	MaxPods MaxPods `yaml:"maxPods"`

	// Which consoles show the screen with the node's state: both (as without this
	// key), serial, hdmi, or off. The kernel's messages go to all of them in any case.
	Console Console `yaml:"console"`

	// The seconds after which the hardware watchdog resets a node that hangs, 15
	// to 600, or off. Without it: 60. Hardware that knows less keeps what it has
	// (a Raspberry Pi: 15). off counts from when this file is read, so not for the
	// first seconds of a boot.
	Watchdog Watchdog `yaml:"watchdog"`

	// Device-tree overlays that U-Boot applies, in this order, at most 8: dac
	// stands for the file overlays/dac.dtbo on FIRMWARE. A change restarts the node
	// once more. One that is missing or does not fit is left out, which the console
	// says. Not in QEMU's virt machine, whose U-Boot can't. On a Raspberry Pi
	// the firmware's own way works too: dtoverlay= in config.txt.
	Overlays []Overlay `yaml:"overlays"`
}

// Network is the node's network.
type Network struct {
	// Interfaces that are not to do the usual: DHCP for IPv4, router
	// advertisements for IPv6.
	Interfaces []Interface `yaml:"interfaces"`
}

// Interface is one wired interface, or a VLAN on it.
type Interface struct {
	// Its name, as the console shows it. Either this or mac.
	Name string `yaml:"name"`
	// Its hardware address, which stays when names change.
	MAC MAC `yaml:"mac"`
	// A VLAN, 1 to 4094: what follows is for this VLAN on the interface of that name
	// or mac, not for the interface itself. eth0 and 20 make eth0.20.
	VLAN VLAN `yaml:"vlan"`
	// Its IPv4 address with the length of the network's prefix. Either this or dhcp.
	Address netip.Prefix `yaml:"address"`
	// true: it asks for an IPv4 address, and what else stands here comes before what
	// the server says. false: it has none, as the interface under a VLAN may.
	DHCP Switch `yaml:"dhcp"`
	// The router to other networks, for an address that stands here. Without it: none is reached.
	Gateway netip.Addr `yaml:"gateway"`
	// auto (as without this key): addresses and routes that routers advertise, and
	// address6; name servers are not taken from there. off: no IPv6 at all.
	IPv6 IPv6 `yaml:"ipv6"`
	// An IPv6 address with the length of the network's prefix, like fd00:1::5/64. Kubernetes
	// uses IPv4 only; this is for name servers, time servers, registries and who asks the node.
	Address6 Prefix6 `yaml:"address6"`
	// The IPv6 router to other networks, besides those that are advertised. It may be a
	// link-local address.
	Gateway6 Addr6 `yaml:"gateway6"`
	// Name servers, IPv4 or IPv6.
	DNS []IP `yaml:"dns"`
	// The domain that names without a dot are looked up in.
	Domain string `yaml:"domain"`
	// The largest packet in bytes, 576 to 9216; with IPv6 at least 1280. Without it:
	// the interface's own.
	MTU int `yaml:"mtu"`
}

// maxVLANParent leaves room for .4094: an interface's name has 15 characters.
const maxVLANParent = 10

func (i *Interface) validate() error {
	switch {
	case (i.Name == "") == (i.MAC == ""):
		return errors.New("interface: want either name or mac")
	case strings.ContainsAny(i.Name, "/ \t\n") || i.Name == "." || i.Name == ".." || len(i.Name) > 15:
		return fmt.Errorf("name %q: want an interface's name, like eth0", i.Name)
	case i.VLAN > 0 && len(i.Name) > maxVLANParent:
		return fmt.Errorf("name %q: want at most %d characters under a VLAN; use mac", i.Name, maxVLANParent)
	case !i.Address.IsValid() && i.DHCP == "":
		return errors.New("interface: want address, dhcp: true or dhcp: false; without an entry an interface uses DHCP")
	case i.Address.IsValid() && i.DHCP == On:
		return errors.New("interface: want either address or dhcp: true")
	case i.Gateway.IsValid() && !i.Address.IsValid():
		return errors.New("gateway: want an address beside it; DHCP names its own")
	case i.Gateway.IsValid() && (!i.Address.Masked().Contains(i.Gateway) || i.Gateway == i.Address.Addr()):
		return fmt.Errorf("gateway %v: want another address in the interface's network %v", i.Gateway, i.Address.Masked())
	case i.IPv6 == IPv6Off && (i.Address6.IsValid() || i.Gateway6.IsValid()):
		return errors.New("ipv6: off leaves no room for address6 and gateway6")
	case i.Gateway6.IsValid() && !i.Address6.IsValid():
		return errors.New("gateway6: want address6 beside it; advertised routers need no entry")
	case i.Gateway6.IsValid() && (i.Gateway6.Addr == i.Address6.Addr() || !i.Gateway6.IsLinkLocalUnicast() && !i.Address6.Masked().Contains(i.Gateway6.Addr)):
		return fmt.Errorf("gateway6 %v: want a link-local address or another one in the interface's network %v", i.Gateway6, i.Address6.Masked())
	case i.MTU != 0 && (i.MTU < 576 || i.MTU > 9216):
		return fmt.Errorf("mtu %d: want 576 to 9216", i.MTU)
	case i.MTU != 0 && i.MTU < 1280 && i.Address6.IsValid():
		return fmt.Errorf("mtu %d: want at least 1280 for IPv6", i.MTU)
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
	// Who pulls. It goes with password to the registry, and to those of its mirrors
	// that ask for it. Whoever holds the card can read both.
	Username string `yaml:"username"`
	// The password, or the access token where the registry gives out such.
	Password Secret `yaml:"password"`
	// The certificate of the authority that the registry and its mirrors are trusted by, besides the
	// public ones: the text of a PEM file, after ca: | and indented.
	CA PEM `yaml:"ca"`
	// true: whoever answers for the registry and its mirrors is believed, without a look at certificates.
	// For trying things out.
	Insecure Switch `yaml:"insecure"`
}

func (r *Registry) validate() error {
	switch {
	case r.Host == "":
		return errors.New("registry: no host; want for example docker.io")
	case (r.Username == "") != (r.Password == ""):
		return fmt.Errorf("registry %s: want username and password, or neither", r.Host)
	case strings.ContainsAny(r.Username, ":\n"):
		return fmt.Errorf("registry %s: username: want one without a colon", r.Host) // it ends there in HTTP
	}
	return nil
}

// Reserved is kept from pods.
type Reserved struct {
	// Memory for the system and skerryd, like 700Mi, which no pod can take from them. Without it: 540Mi and
	// 12Mi for each pod that may run, at most 40 percent of what there is.
	Memory Bytes `yaml:"memory"`
	// Processor time for the system and skerryd that pods can't ask for, in thousandths of a
	// processor, like 200m. Without it: none; they come first when it is short.
	CPU CPU `yaml:"cpu"`
	// Room on STATE that pods and images may not take, like 1Gi: with less, images that are not
	// used are removed, then pods end. Without it: 10 percent of STATE, 15 for images.
	Storage Bytes `yaml:"storage"`
}

// Pods is how many may run at a time on a machine with total bytes of memory. Each has a shim,
// which belongs to the system: an eighth of the memory is for them.
func (c *Config) Pods(total int64) int {
	const least, most = 12, 110 // most is the kubelet's own
	if c.MaxPods > 0 {
		return int(c.MaxPods)
	}
	return int(min(max(total/8/shim, least), most))
}

// ReservedMemory is the memory in bytes that pods can't have, of a machine with total: what
// skerry.yaml says, within reason, or what a busy node was measured to need, the pages
// of its programs included (docs/decisions/0016-little-memory.md), where there is room for that.
func (c *Config) ReservedMemory(total int64) int64 {
	if c.Reserved.Memory > 0 {
		return min(int64(c.Reserved.Memory), total/5*4)
	}
	return min(540<<20+int64(c.Pods(total))*shim, total/5*2)
}

// shim is the memory of one pod's shim.
const shim = 12 << 20

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

// Bytes is an amount of memory or storage, positive when it is set.
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
