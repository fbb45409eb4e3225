package config

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"os"
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
					DNS: []netip.Addr{netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("10.2.0.2")}, Domain: "farm.example.org", MTU: 9000}}},
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
		{name: "no address", in: "network:\n  interfaces:\n  - name: eth0\n", lines: []int{3}},
		{name: "name and mac", in: "network:\n  interfaces:\n  - {name: eth0, mac: 'dc:a6:32:01:02:03', address: 10.1.0.5/24}\n", lines: []int{3}},
		{name: "gateway elsewhere", in: "network:\n  interfaces:\n  - {name: eth0, address: 10.1.0.5/24, gateway: 10.2.0.1}\n", lines: []int{3}},
		{name: "gateway is oneself", in: "network:\n  interfaces:\n  - {name: eth0, address: 10.1.0.5/24, gateway: 10.1.0.5}\n", lines: []int{3}},
		{name: "mtu of words", in: "network:\n  interfaces:\n  - name: eth0\n    address: 10.1.0.5/24\n    mtu: large\n", lines: []int{5}},
		{name: "label", in: "labels:\n  a: b\n  c: d e\n  -: x\n", want: Config{Labels: Labels{"a": "b"}}, lines: []int{3, 4}},
		{name: "taints", in: "taints: [a:b, c, 'd=e:NoSchedule']\n", want: Config{Taints: []Taint{{"d", "e", "NoSchedule"}}}, lines: []int{1, 1}},
		{name: "memory", in: "reserved: {memory: 400}\n", lines: []int{1}},
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

func TestTaintString(t *testing.T) {
	for _, s := range []string{"a=b:NoSchedule", "a:NoExecute"} {
		var taint Taint
		if err := taint.UnmarshalText([]byte(s)); err != nil || taint.String() != s {
			t.Errorf("%q read and written = %q, %v", s, taint, err)
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

The keys, made from ` + "`agent/config/config.go`" + `; ` + "`[]`" + ` marks a list.

| key | |
|---|---|
`
