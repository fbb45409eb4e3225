package config

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write docs/skerry.yaml.md anew")

func TestParse(t *testing.T) {
	eth0 := Interface{Name: "eth0", Address: netip.MustParsePrefix("10.1.0.5/24"), Gateway: netip.MustParseAddr("10.1.0.1")}
	for _, tt := range []struct {
		name, in string
		want     Config
		lines    []int // of the mistakes, in order
	}{
		{name: "empty"},
		{name: "comments", in: "# hostname: x\n"},
		{name: "null", in: "~\n"},
		{name: "all", in: `hostname: barn-1
network:
  interfaces:
  - name: eth0
    address: 10.1.0.5/24
    gateway: 10.1.0.1
  - mac: DC:A6:32:01:02:03
    address: 10.2.0.5/16
    dns: [10.2.0.1, 10.2.0.2]
    domain: farm.example.org
    mtu: 9000
ntp: [10.0.0.1, "::1", time.example.org]
registries:
- host: docker.io
  mirrors: ["http://10.0.0.5:5000"]
labels:
  example.org/site: north-barn
  gpu:
taints: [example.org/dark=yes:NoSchedule, cold:NoExecute]
reserved:
  memory: 300Mi
`,
			want: Config{Hostname: "barn-1", NTP: []Server{"10.0.0.1", "::1", "time.example.org"},
				Network: Network{Interfaces: []Interface{eth0, {MAC: "dc:a6:32:01:02:03", Address: netip.MustParsePrefix("10.2.0.5/16"),
					DNS: []IP{{netip.MustParseAddr("10.2.0.1")}, {netip.MustParseAddr("10.2.0.2")}}, Domain: "farm.example.org", MTU: 9000}}},
				Registries: []Registry{{Host: "docker.io", Mirrors: []URL{"http://10.0.0.5:5000"}}},
				Labels:     Labels{"example.org/site": "north-barn", "gpu": ""},
				Taints:     []Taint{{"example.org/dark", "yes", "NoSchedule"}, {"cold", "", "NoExecute"}},
				Reserved:   Reserved{Memory: 300 << 20}}},
		{name: "windows editor", in: "\xef\xbb\xbfhostname: barn-1\r\nntp: [a]\r\n", want: Config{Hostname: "barn-1", NTP: []Server{"a"}}},
		{name: "unknown key", in: "hostnam: x\nhostname: y\n", want: Config{Hostname: "y"}, lines: []int{1}},
		{name: "twice", in: "hostname: x\nhostname: y\n", want: Config{Hostname: "x"}, lines: []int{2}},
		{name: "wrong type", in: "hostname: [x]\nntp: [a]\n", want: Config{NTP: []Server{"a"}}, lines: []int{1}},
		{name: "a number for a name", in: "hostname: 7\nlabels: {a: 007, b: yes}\n", want: Config{Hostname: "7", Labels: Labels{"a": "007", "b": "yes"}}},
		{name: "bad name", in: "\nhostname: Barn_1\n", lines: []int{2}},
		{name: "a word for a list", in: "ntp: a\n", lines: []int{1}},
		{name: "servers", in: "ntp: ['a:124', '[::1]:125', 'a:b', 'http://a', '10.0.0.1:99999', 'a b']\n", want: Config{NTP: []Server{"a:124", "[::1]:125"}}, lines: []int{1, 1, 1, 1}},
		{name: "an empty entry", in: "ntp:\n- a\n-\n", want: Config{NTP: []Server{"a"}}, lines: []int{3}},
		{name: "wrong entry of a list", in: "registries:\n- host: a\n- host: b\n  mirror: [x]\n- host: c\n",
			want: Config{Registries: []Registry{{Host: "a"}, {Host: "c"}}}, lines: []int{4}},
		{name: "mirror without scheme", in: "registries:\n- host: x\n  mirrors:\n  - http://a\n  - y\n", lines: []int{5}},
		{name: "no host", in: "registries:\n- mirrors: []\n", lines: []int{2}},
		{name: "address without length", in: "network:\n  interfaces:\n  - name: eth0\n    address: 10.1.0.5\n", lines: []int{4}},
		{name: "IPv6", in: "network:\n  interfaces:\n  - name: eth0\n    address: fd00::1/64\n", lines: []int{4}},
		{name: "role", in: "role: server\n", want: Config{Role: RoleServer}},
		{name: "roles", in: "role: worker\n", lines: []int{1}},
		{name: "VLAN", in: "network:\n  interfaces:\n  - {name: eth0, dhcp: false}\n  - {name: eth0, vlan: 20, dhcp: true, mtu: 1400, dns: [10.0.0.1, 'fd00::1']}\n",
			want: Config{Network: Network{Interfaces: []Interface{{Name: "eth0", DHCP: Off}, {Name: "eth0", VLAN: 20, DHCP: On, MTU: 1400,
				DNS: []IP{{netip.MustParseAddr("10.0.0.1")}, {netip.MustParseAddr("fd00::1")}}}}}}},
		{name: "VLANs", in: "network:\n  interfaces:\n  - {name: eth0, vlan: 4095, dhcp: true}\n  - {name: eth0, vlan: 0, dhcp: true}\n  - {name: enx00112233, vlan: 1, dhcp: true}\n  - {name: eth0, vlan: -1, dhcp: true}\n" +
			"  - {name: eth0, vlan: twenty, dhcp: true}\n  - {vlan: 20, dhcp: true}\n", lines: []int{3, 4, 5, 6, 7, 8}},
		{name: "DHCP and address", in: "network:\n  interfaces:\n  - {name: eth0, address: 10.1.0.5/24, dhcp: true}\n  - {name: eth0, dhcp: maybe}\n  - {name: eth0, dhcp: true, gateway: 10.1.0.1}\n", lines: []int{3, 4, 5}},
		{name: "fixed IPv6", in: "network:\n  interfaces:\n  - {name: eth0, dhcp: true, address6: 'fd00:1::5/64', gateway6: 'fe80::1', ipv6: auto}\n  - {name: eth1, dhcp: false, ipv6: off}\n",
			want: Config{Network: Network{Interfaces: []Interface{{Name: "eth0", DHCP: On, IPv6: IPv6Auto, Address6: Prefix6{netip.MustParsePrefix("fd00:1::5/64")},
				Gateway6: Addr6{netip.MustParseAddr("fe80::1")}}, {Name: "eth1", DHCP: Off, IPv6: IPv6Off}}}}},
		{name: "IPv6 that is not right", in: "network:\n  interfaces:\n  - {name: a, dhcp: true, address6: 10.0.0.1/8}\n  - {name: a, dhcp: true, address6: 'fd00::1'}\n" +
			"  - {name: a, dhcp: true, address6: 'fd00::1/64', gateway6: 'fd00::1'}\n  - {name: a, dhcp: true, address6: 'fd00::1/64', gateway6: 'fd01::1'}\n" +
			"  - {name: a, dhcp: true, gateway6: 'fe80::1'}\n  - {name: a, dhcp: true, address6: 'fd00::1/64', ipv6: off}\n  - {name: a, dhcp: true, ipv6: sometimes}\n" +
			"  - {name: a, dhcp: true, address6: 'fd00::1/64', gateway6: 'fe80::1%eth0'}\n  - {name: a, dhcp: true, address6: 'fd00::1/64', mtu: 1000}\n  - {name: a, dhcp: true, dns: ['::']}\n" +
			"  - {name: a, dhcp: true, address6: '::ffff:10.0.0.1/96'}\n",
			lines: []int{3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}},
		{name: "name of an interface", in: "network:\n  interfaces:\n  - {name: ../x, dhcp: true}\n  - {name: a b, dhcp: true}\n", lines: []int{3, 4}},
		{name: "credentials", in: "registries:\n- {host: a, username: me, password: 0123, insecure: true}\n- {host: b, username: me}\n- {host: c, password: x}\n- {host: d, username: 'a:b', password: c}\n- {host: e, insecure: 7}\n",
			want: Config{Registries: []Registry{{Host: "a", Username: "me", Password: "0123", Insecure: On}}}, lines: []int{3, 4, 5, 6}},
		{name: "authority", in: "registries:\n- host: a\n  ca: |\n    " + strings.ReplaceAll(strings.TrimSpace(authority(t)), "\n", "\n    ") + "\n- host: b\n  ca: ca.crt\n",
			want: Config{Registries: []Registry{{Host: "a", CA: PEM(authority(t))}}}, lines: []int{3 + strings.Count(authority(t), "\n") + 2}},
		{name: "key for an authority", in: "registries:\n- host: a\n  ca: |\n    -----BEGIN PRIVATE KEY-----\n    MC4CAQ==\n    -----END PRIVATE KEY-----\n", lines: []int{3}},
		{name: "broken authority", in: "registries:\n- host: a\n  ca: |\n    -----BEGIN CERTIFICATE-----\n    MC4CAQ==\n    -----END CERTIFICATE-----\n", lines: []int{3}},
		{name: "reserved", in: "reserved: {cpu: 200m, storage: 1Gi}\n", want: Config{Reserved: Reserved{CPU: 200, Storage: 1 << 30}}},
		{name: "wrong reserved", in: "reserved:\n  cpu: 2\n  storage: 10%\n", lines: []int{2, 3}},
		{name: "console", in: "console: hdmi\n", want: Config{Console: ConsoleHDMI}},
		{name: "wrong console", in: "console: ttyS0\n", lines: []int{1}},
		{name: "watchdog", in: "watchdog: 120\n", want: Config{Watchdog: Watchdog(2 * time.Minute)}},
		{name: "no watchdog", in: "watchdog: off\n", want: Config{Watchdog: WatchdogOff}},
		{name: "wrong watchdogs", in: "watchdog: 2\n", lines: []int{1}},
		{name: "overlays", in: "overlays: [dac, i2c-rtc.v2]\n", want: Config{Overlays: []Overlay{"dac", "i2c-rtc.v2"}}},
		{name: "wrong overlays", in: "overlays:\n- ../boot\n- a b\n- ok\n- $x\n", want: Config{Overlays: []Overlay{"ok"}}, lines: []int{2, 3, 5}},
		{name: "many overlays", in: "overlays: [a, b, c, d, e, f, g, h,\n i, j]\n", want: Config{Overlays: []Overlay{"a", "b", "c", "d", "e", "f", "g", "h"}}, lines: []int{2}},
		{name: "no address", in: "network:\n  interfaces:\n  - name: eth0\n", lines: []int{3}},
		{name: "name and mac", in: "network:\n  interfaces:\n  - {name: eth0, mac: 'dc:a6:32:01:02:03', address: 10.1.0.5/24}\n", lines: []int{3}},
		{name: "gateway elsewhere", in: "network:\n  interfaces:\n  - {name: eth0, address: 10.1.0.5/24, gateway: 10.2.0.1}\n", lines: []int{3}},
		{name: "gateway is oneself", in: "network:\n  interfaces:\n  - {name: eth0, address: 10.1.0.5/24, gateway: 10.1.0.5}\n", lines: []int{3}},
		{name: "mtu of words", in: "network:\n  interfaces:\n  - name: eth0\n    address: 10.1.0.5/24\n    mtu: large\n", lines: []int{5}},
		{name: "label", in: "labels:\n  a: b\n  c: d e\n  -: x\n", want: Config{Labels: Labels{"a": "b"}}, lines: []int{3, 4}},
		{name: "taints", in: "taints: [a:b, c, 'd=e:NoSchedule']\n", want: Config{Taints: []Taint{{"d", "e", "NoSchedule"}}}, lines: []int{1, 1}},
		{name: "memory", in: "reserved: {memory: 400}\n", lines: []int{1}},
		{name: "pods", in: "maxPods: 40\n", want: Config{MaxPods: 40}},
		{name: "no pods", in: "maxPods: 0\n", lines: []int{1}},
		{name: "aliases", in: "ntp: &a [x]\nhostname: y\n", want: Config{Hostname: "y"}, lines: []int{1}},
		{name: "alias of itself", in: "ntp: &a [*a]\n", lines: []int{1}},
		// Of what is no YAML only the piece with the mistake is lost.
		{name: "tab", in: "hostname: x\nntp:\n\t- y\nlabels: {a: b}\n", want: Config{Hostname: "x", Labels: Labels{"a": "b"}}, lines: []int{3}},
		{name: "open bracket", in: "ntp: [a\nhostname: x\n", want: Config{Hostname: "x"}, lines: []int{1}},
		{name: "no colon", in: "hostname barn\nntp: [a]\n", want: Config{NTP: []Server{"a"}}, lines: []int{1}},
		{name: "twice, in pieces", in: "hostname: x\nhostname: y\n%\n", want: Config{Hostname: "x"}, lines: []int{2, 3}},
		{name: "second document", in: "hostname: x\n---\nhostname: y\n", want: Config{Hostname: "x"}, lines: []int{2}},
		{name: "list", in: "- a\n", lines: []int{1}},
		{name: "binary", in: "\x00\x01\xff", lines: []int{0}},
		{name: "huge", in: string(bytes.Repeat([]byte("#"), 10<<20)), lines: []int{0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, mistakes := Parse([]byte(tt.in))
			if !reflect.DeepEqual(*got, tt.want) {
				t.Errorf("Parse() = %+v; want %+v", *got, tt.want)
			}
			var lines []int
			for _, m := range mistakes {
				lines = append(lines, m.Line)
				t.Log(m)
				if strings.ContainsAny(m.String(), "\n\r") {
					t.Errorf("mistake %q: want one line", m)
				}
			}
			if !reflect.DeepEqual(lines, tt.lines) {
				t.Errorf("Parse() mistakes in lines %v; want %v", lines, tt.lines)
			}
		})
	}
}

// authority is a certificate as PEM.
func authority(t *testing.T) string {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(nil, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// A password must not be told by accident: not in a mistake, not in a log line.
func TestSecretIsNotTold(t *testing.T) {
	for _, in := range []string{
		"registries:\n- {host: a, username: me, password: hunter2}\n",
		"registries:\n- {host: a, password: hunter2}\n",
		"registries:\n- {host: a, username: me, password: [hunter2]}\n",
		"registries:\n- {host: a, username: me, password: *hunter2}\n",
		"registries:\n- {host: a, username: me, password: &x hunter2}\n",
		"registries:\n- {host: a, username: me, password: hunter2\n",
		"registries:\n- {host: a, username: me, password: hunter2, password: hunter2}\n",
		"registries:\n- {host: a, username: me, password: \"hunter2}\n",
	} {
		c, mistakes := Parse([]byte(in))
		if told := fmt.Sprintf("%v %+v %#v %v", *c, *c, *c, mistakes); strings.Contains(told, "hunter2") {
			t.Errorf("Parse(%q) tells the password: %s", in, told)
		}
	}
}

func TestTaintString(t *testing.T) {
	for _, s := range []string{"a=b:NoSchedule", "a:NoExecute"} {
		var taint Taint
		if err := taint.UnmarshalText([]byte(s)); err != nil || taint.String() != s {
			t.Errorf("%q read and written = %q, %v", s, taint, err)
		}
	}
}

// Of a file without end no more is read than Parse needs to refuse it.
func TestReadFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), FileName)
	for _, size := range []int64{0, MaxSize, MaxSize + 1, 1 << 40} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		data, err := ReadFile(file)
		if want := min(size, MaxSize+1); err != nil || int64(len(data)) != want {
			t.Errorf("of %d bytes ReadFile() = %d bytes, %v; want %d", size, len(data), err, want)
		}
	}
}

// A file of the largest size must not keep a small processor busy.
func TestParseIsLinear(t *testing.T) {
	for _, piece := range []string{"[", "a: b\n", "a:\n\t- b\n", "- ", "{a: ", "\"", "? ", "&a ", "---\n"} {
		begin := time.Now()
		Parse(bytes.Repeat([]byte(piece), MaxSize/len(piece)))
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("a file of %q took %v", piece, took)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("hostname: x\nregistries: [{host: a, mirrors: [http://b]}]"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("network: {interfaces: [{name: a, address: 10.0.0.1/8, gateway: 10.0.0.2}]}"))
	f.Add([]byte("network: {interfaces: [{mac: '52:54:00:00:00:01', vlan: 20, dhcp: true, dns: ['fd00::1'], address6: 'fd00::5/64', gateway6: 'fe80::1', ipv6: auto}]}"))
	f.Add([]byte("role: server\nconsole: hdmi\nwatchdog: off\noverlays: [a, b, c]\nreserved: {cpu: 200m, storage: 1Gi}"))
	f.Add([]byte("registries:\n- host: a\n  username: b\n  password: c\n  insecure: true\n  ca: |\n    -----BEGIN CERTIFICATE-----\n    MC4CAQ==\n    -----END CERTIFICATE-----\n"))
	f.Add([]byte("labels: {a: b}\ntaints: [a:NoSchedule]\nreserved: {memory: 1Gi}\n\t"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, mistakes := Parse(data)
		if c == nil {
			t.Fatal("Parse() = nil")
		}
		if c.Hostname != "" && CheckHostname(string(c.Hostname)) != nil {
			t.Errorf("Parse() let hostname %q through", c.Hostname)
		}
		for _, i := range c.Network.Interfaces {
			if err := i.validate(); err != nil {
				t.Errorf("Parse() let an interface through: %v", err)
			}
		}
		for _, r := range c.Registries {
			if err := r.validate(); err != nil {
				t.Errorf("Parse() let a registry through: %v", err)
			}
		}
		for _, o := range c.Overlays {
			if err := new(Overlay).UnmarshalText([]byte(o)); err != nil || len(c.Overlays) > o.atMost() {
				t.Errorf("Parse() let overlays %q through: %v", c.Overlays, err)
			}
		}
		if w := time.Duration(c.Watchdog); w != 0 && c.Watchdog != WatchdogOff && (w < minWatchdog*time.Second || w > maxWatchdog*time.Second) {
			t.Errorf("Parse() let watchdog %v through", w)
		}
		for k, v := range c.Labels {
			if err := c.Labels.check(k, v); err != nil {
				t.Errorf("Parse() let a label through: %v", err)
			}
		}
		for _, m := range mistakes {
			if m.Line < 0 || m.Line > bytes.Count(data, []byte("\n"))+bytes.Count(data, []byte("\r"))+2 {
				t.Errorf("mistake in line %d of %d: %v", m.Line, bytes.Count(data, []byte("\n"))+1, m)
			}
		}
	})
}

// docs/skerry.yaml.md is what the structs say.
func TestReference(t *testing.T) {
	const page = "../../docs/skerry.yaml.md"
	got := reference(t)
	if *update {
		if err := os.WriteFile(page, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what config.go says (go test -update writes it):\n%s", page, got)
	}
	for block := range strings.SplitSeq(got, "```yaml\n") {
		example, _, ok := strings.Cut(block, "```")
		if _, mistakes := Parse([]byte(example)); ok && !strings.HasPrefix(block, "#") && len(mistakes) > 0 {
			t.Errorf("the example has mistakes: %v", mistakes)
		}
	}
}

func reference(t *testing.T) string {
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	structs := map[string]*ast.StructType{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.TypeSpec); ok {
			if s, ok := spec.Type.(*ast.StructType); ok {
				structs[spec.Name.Name] = s
			}
		}
		return true
	})
	var b strings.Builder
	b.WriteString(head)
	var list func(s *ast.StructType, prefix string)
	list = func(s *ast.StructType, prefix string) {
		for _, f := range s.Fields.List {
			key := prefix + strings.TrimSuffix(strings.TrimPrefix(f.Tag.Value, "`yaml:\""), "\"`")
			elem, many := f.Type, ""
			if a, ok := elem.(*ast.ArrayType); ok {
				elem, many = a.Elt, "[]"
			}
			text := strings.Join(strings.Fields(f.Doc.Text()), " ")
			if text == "" {
				t.Errorf("%s has no comment", key)
			}
			fmt.Fprintf(&b, "| `%s%s` | %s |\n", key, many, text)
			if id, ok := elem.(*ast.Ident); ok && structs[id.Name] != nil && strings.Contains(structTags(structs[id.Name]), "yaml:") {
				list(structs[id.Name], key+many+".")
			}
		}
	}
	list(structs["Config"], "")
	return b.String()
}

func structTags(s *ast.StructType) (tags string) {
	for _, f := range s.Fields.List {
		if f.Tag != nil {
			tags += f.Tag.Value
		}
	}
	return tags
}

const head = `# skerry.yaml

The file a person edits: on the card's FIRMWARE partition, on any computer, or before flashing with ` + "`skerry flash --config FILE`" + `. It is read at
each start. A mistake is named with its line on the console, and the node comes up with the rest: a wrong key is ignored alone, a wrong entry of a
list whole. An empty file is a right one.

Who holds the card can read this file, passwords of registries too; give the node a name of its own there, which may only pull. On the running node only root can.

` + "```yaml" + `
hostname: barn-1
network:
  interfaces:
  - name: eth0
    address: 192.168.1.20/24
    gateway: 192.168.1.1
    dns: [192.168.1.1]
labels:
  example.org/site: north-barn
` + "```" + `

A node on VLAN 20 only, with IPv6 besides, that pulls from a registry in the house:

` + "```yaml" + `
network:
  interfaces:
  - name: eth0
    dhcp: false
    ipv6: off
  - name: eth0
    vlan: 20
    dhcp: true
    address6: fd00:20::5/64
registries:
- host: registry.lan:5000
  username: barn-1
  password: "kept here, on the card"
` + "```" + `

The keys, made from ` + "`agent/config/config.go`" + `; ` + "`[]`" + ` marks a list.

| key | |
|---|---|
`

func TestShares(t *testing.T) {
	const mi = 1 << 20
	for _, tt := range []struct {
		in       Config
		total    int64
		pods     int
		reserved int64
	}{
		{Config{}, 460 * mi, 12, 184 * mi},
		{Config{}, 1970 * mi, 20, 780 * mi},
		{Config{}, 3900 * mi, 40, 1020 * mi},
		{Config{}, 32000 * mi, 110, 1860 * mi},
		{Config{MaxPods: 30}, 3900 * mi, 30, 900 * mi},
		{Config{Reserved: Reserved{Memory: 256 * mi}}, 3900 * mi, 40, 256 * mi},
		{Config{Reserved: Reserved{Memory: 4096 * mi}}, 1000 * mi, 12, 800 * mi}, // a kubelet that is to keep all does not start
	} {
		if pods, reserved := tt.in.Pods(tt.total), tt.in.ReservedMemory(tt.total); pods != tt.pods || reserved != tt.reserved {
			t.Errorf("of %d MiB with %+v: %d pods, %d MiB reserved; want %d, %d", tt.total/mi, tt.in, pods, reserved/mi, tt.pods, tt.reserved/mi)
		}
	}
}
