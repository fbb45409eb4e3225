// Package config defines skerry.yaml, the one file a person edits on a node's
// FIRMWARE partition. A mistake never stops a node: each is named with its
// line, and the rest of the file takes effect.
//
// Left out: reading and writing files, so that init, skerryd and the operator's
// command judge a file with the same code wherever its bytes come from.
package config

import (
	"bytes"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// FileName is the name on FIRMWARE.
const FileName = "skerry.yaml"

// MaxSize is the largest file that is read, in bytes.
const MaxSize = 1 << 20

// Config is the node's configuration. Zero values mean the documented default.
type Config struct {
	// Hostname is the node's name, in Kubernetes too: an RFC 1123 label.
	// Empty: "skerry-" and the last six digits of the first MAC address.
	Hostname string `yaml:"hostname"`

	// Registries says where images of a registry are pulled from. Empty:
	// from the registry's own name over HTTPS.
	Registries []Registry `yaml:"registries"`

	// NTP lists the time servers. Empty: those that DHCP names.
	NTP []string `yaml:"ntp"`
}

// Registry is one registry, as image names spell it.
type Registry struct {
	Host    string   `yaml:"host"`    // for example docker.io or 10.0.2.2:5000
	Mirrors []string `yaml:"mirrors"` // URLs, tried in order before the host itself
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

// keys maps each key of the file to what reads it. The value is decoded into
// the configuration only as a whole, so a wrong one leaves the default.
var keys = map[string]func(*Config, *yaml.Node) error{
	"hostname": func(c *Config, n *yaml.Node) error {
		var s string
		if err := n.Decode(&s); err != nil {
			return err
		}
		if err := CheckHostname(s); err != nil {
			return err
		}
		c.Hostname = s
		return nil
	},
	"ntp": func(c *Config, n *yaml.Node) error { return n.Decode(&c.NTP) },
	"registries": func(c *Config, n *yaml.Node) error {
		var rs []Registry
		if err := strict(n, &rs); err != nil {
			return err
		}
		for _, r := range rs {
			if r.Host == "" || strings.ContainsAny(r.Host, "/ \\") || r.Host[0] == '.' {
				return fmt.Errorf("registry host %q: want a name as in an image, like docker.io or 10.0.0.5:5000", r.Host)
			}
			for _, m := range r.Mirrors {
				if u, err := url.Parse(m); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.ContainsAny(m, "\"\n") {
					return fmt.Errorf("mirror %q: want a URL like https://mirror.lan:5000", m)
				}
			}
		}
		c.Registries = rs
		return nil
	},
}

var hostname = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// CheckHostname reports whether s can be a node's name (RFC 1123, one label).
func CheckHostname(s string) error {
	if !hostname.MatchString(s) {
		return fmt.Errorf("hostname %q: want at most 63 lower-case letters, digits and hyphens, like barn-1", s)
	}
	return nil
}

// Parse reads a file. It never fails as a whole: what could not be understood
// is returned as mistakes, in the order of the file, and has its default.
func Parse(data []byte) (*Config, []Mistake) {
	c := &Config{}
	if len(data) > MaxSize {
		return c, []Mistake{{Text: fmt.Sprintf("got %d bytes, want at most %d; all of it is ignored", len(data), MaxSize)}}
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if !utf8.Valid(data) || bytes.ContainsRune(data, 0) {
		return c, []Mistake{{Text: "not a text file (UTF-8); all of it is ignored"}}
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return c, []Mistake{fromYAML(0, err)}
	}
	if len(doc.Content) == 0 {
		return c, nil // empty, or comments only
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return c, nil
	}
	if root.Kind != yaml.MappingNode {
		return c, []Mistake{{Line: root.Line, Text: "want lines of the form key: value; all of it is ignored"}}
	}
	var mistakes []Mistake
	seen := map[string]int{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		k, v := root.Content[i], root.Content[i+1]
		read, known := keys[k.Value]
		switch first, twice := seen[k.Value]; {
		case twice:
			mistakes = append(mistakes, Mistake{k.Line, fmt.Sprintf("key %q stands in line %d already; this one is ignored", k.Value, first)})
			continue
		case !known:
			mistakes = append(mistakes, Mistake{k.Line, fmt.Sprintf("unknown key %q; it is ignored", k.Value)})
			continue
		}
		seen[k.Value] = k.Line
		if v.Tag == "!!null" {
			continue
		}
		if err := read(c, v); err != nil {
			mistakes = append(mistakes, fromYAML(k.Line, err))
		}
	}
	return c, mistakes
}

// strict decodes n and refuses unknown keys, which Node.Decode can't.
func strict(n *yaml.Node, into any) error {
	data, err := yaml.Marshal(n)
	if err != nil {
		return err
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	return d.Decode(into)
}

var yamlLine = regexp.MustCompile(`(?s)line (\d+): (.*)`)

// fromYAML takes the line out of the library's message; line is used when
// there is none or when it counts from an inner value.
func fromYAML(line int, err error) Mistake {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	text = strings.TrimPrefix(text, "unmarshal errors:\n  ")
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		if line == 0 {
			fmt.Sscan(m[1], &line)
		}
		text = m[2]
	}
	return Mistake{line, strings.Join(strings.Fields(text), " ")}
}
