package config

import (
	"bytes"
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxMistakes is how many are told one by one: more would only push the first off
// the console.
const maxMistakes = 20

// ReadFile reads the file at path for Parse: of one that is too large no more than
// Parse needs to say so.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxSize+1))
}

// Parse reads the text of a file. It never fails as a whole: what could not be understood
// is returned as mistakes, in the order of the file, and has its default.
func Parse(data []byte) (*Config, []Mistake) {
	c := &Config{}
	if len(data) > MaxSize {
		return c, []Mistake{{Text: fmt.Sprintf("got more than %d bytes; all of it is ignored", MaxSize)}}
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if !utf8.Valid(data) || bytes.ContainsRune(data, 0) {
		return c, []Mistake{{Text: "not a text file (UTF-8); all of it is ignored"}}
	}
	var d decoder
	if root := d.read(data); root != nil {
		d.value(reflect.ValueOf(c).Elem(), root)
	}
	slices.SortStableFunc(d.mistakes, func(a, b Mistake) int { return cmp.Compare(a.Line, b.Line) })
	if more := len(d.mistakes) - maxMistakes; more > 0 {
		d.mistakes = append(d.mistakes[:maxMistakes], Mistake{d.mistakes[maxMistakes].Line, fmt.Sprintf("%d more mistakes from here on", more)})
	}
	return c, d.mistakes
}

// decoder goes down a file and the configuration side by side.
type decoder struct{ mistakes []Mistake }

func (d *decoder) mistake(line int, format string, args ...any) bool {
	d.mistakes = append(d.mistakes, Mistake{line, fmt.Sprintf(format, args...)})
	return false
}

// read returns the file's top, nil for an empty file. A file that is no YAML is
// read piece by piece, so that one wrong line does not cost the others.
func (d *decoder) read(data []byte) *yaml.Node {
	stream := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	err := stream.Decode(&doc)
	var next yaml.Node
	switch more := stream.Decode(&next); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil || more != nil && !errors.Is(more, io.EOF):
		return d.pieces(data)
	case more == nil:
		d.mistake(next.Line, "a second document begins here; it is ignored")
	}
	return doc.Content[0]
}

// pieces reads each key at the margin with what belongs to it as a file of its own.
func (d *decoder) pieces(data []byte) *yaml.Node {
	root := &yaml.Node{Kind: yaml.MappingNode, Line: 1}
	lines := bytes.SplitAfter(data, []byte("\n"))
	for start := 0; start < len(lines); {
		end := start + 1
		for end < len(lines) && (len(lines[end]) == 0 || bytes.ContainsRune([]byte(" \t\r\n#-"), rune(lines[end][0]))) {
			end++
		}
		var doc yaml.Node
		switch err := yaml.Unmarshal(bytes.Join(lines[start:end], nil), &doc); {
		case err != nil:
			line, message := fromYAML(err)
			d.mistake(start+max(line, 1), "%s; what belongs to line %d is ignored", message, start+1)
		case len(doc.Content) == 0 || doc.Content[0].Tag == "!!null":
		case doc.Content[0].Kind == yaml.MappingNode:
			shift(doc.Content[0], start)
			root.Content = append(root.Content, doc.Content[0].Content...)
		default:
			d.mistake(start+doc.Content[0].Line, "want lines of the form key: value; this is ignored")
		}
		start = end
	}
	return root
}

// shift adds the lines before a piece to those of its nodes.
func shift(n *yaml.Node, lines int) {
	n.Line += lines
	for _, c := range n.Content {
		shift(c, lines)
	}
}

var anchor = regexp.MustCompile(`unknown anchor '[^']*'`)

var yamlLine = regexp.MustCompile(`(?s)line (\d+): (.*)`)

// fromYAML takes the line out of the library's message.
func fromYAML(err error) (line int, text string) {
	text = strings.TrimPrefix(err.Error(), "yaml: ")
	text = strings.TrimPrefix(text, "unmarshal errors:\n  ")
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = m[2]
	}
	text = anchor.ReplaceAllString(text, "unknown anchor") // its name may be a password
	return line, strings.Join(strings.Fields(text), " ")
}

// value fills v from n and says whether all of n was right. What is wrong
// leaves v as it was.
func (d *decoder) value(v reflect.Value, n *yaml.Node) bool {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return d.mistake(n.Line, "anchors and aliases (&, *) are not understood here")
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return true
	}
	if text, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return d.text(v, text, n)
	}
	switch v.Kind() {
	case reflect.Struct:
		return d.structure(v, n)
	case reflect.Slice:
		return d.list(v, n)
	case reflect.Map:
		return d.labels(v, n)
	case reflect.String:
		if n.Kind != yaml.ScalarNode {
			return d.mistake(n.Line, "got %s, want one word", kind(n))
		}
		v.SetString(n.Value)
		return true
	default: // int
		if err := n.Decode(v.Addr().Interface()); err != nil {
			return d.mistake(n.Line, "got %s %q, want a number", kind(n), n.Value)
		}
		return true
	}
}

// want is what the types of other packages look like in the file.
var want = map[string]string{"netip.Prefix": "an IPv4 address with the length of its network's prefix, like 192.168.1.20/24", "netip.Addr": "an IPv4 address, like 192.168.1.1"}

func (d *decoder) text(v reflect.Value, u encoding.TextUnmarshaler, n *yaml.Node) bool {
	if n.Kind != yaml.ScalarNode {
		return d.mistake(n.Line, "got %s, want one word", kind(n))
	}
	err := u.UnmarshalText([]byte(n.Value))
	// The types of netip take IPv6 and the empty word too.
	if text, ok := want[v.Type().String()]; ok && (err != nil || n.Value == "" || strings.Contains(n.Value, ":")) {
		err = fmt.Errorf("got %q, want %s", n.Value, text)
	}
	if err != nil {
		v.SetZero()
		return d.mistake(n.Line, "%v", err)
	}
	return true
}

func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "keys and values"
	}
	return "the word"
}

// keys calls f for each key of a mapping that is there for the first time.
func (d *decoder) keys(n *yaml.Node, f func(k, v *yaml.Node) bool) bool {
	if n.Kind != yaml.MappingNode {
		return d.mistake(n.Line, "got %s, want lines of the form key: value", kind(n))
	}
	ok, seen := true, map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if first, twice := seen[k.Value]; twice {
			ok = d.mistake(k.Line, "key %q stands in line %d already; this one is ignored", k.Value, first)
			continue
		}
		seen[k.Value] = k.Line
		ok = f(k, v) && ok
	}
	return ok
}

func (d *decoder) structure(v reflect.Value, n *yaml.Node) bool {
	fields := map[string]reflect.Value{}
	var names []string
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		fields[name] = v.Field(i)
		names = append(names, name)
	}
	ok := d.keys(n, func(k, value *yaml.Node) bool {
		f, known := fields[k.Value]
		if !known {
			return d.mistake(k.Line, "unknown key %q: want one of %s; it is ignored", k.Value, strings.Join(names, ", "))
		}
		return d.value(f, value)
	})
	if check, has := v.Addr().Interface().(interface{ validate() error }); ok && has {
		if err := check.validate(); err != nil {
			return d.mistake(n.Line, "%v", err)
		}
	}
	return ok
}

func (d *decoder) list(v reflect.Value, n *yaml.Node) bool {
	if n.Kind != yaml.SequenceNode {
		return d.mistake(n.Line, "got %s, want a list: lines that begin with a hyphen, or [one, two]", kind(n))
	}
	ok := true
	for _, entry := range n.Content {
		e := reflect.New(v.Type().Elem()).Elem()
		if few, limited := e.Interface().(interface{ atMost() int }); limited && v.Len() >= few.atMost() {
			return d.mistake(entry.Line, "the list has more than %d entries; from here on it is ignored", few.atMost())
		}
		if entry.Tag == "!!null" {
			ok = d.mistake(entry.Line, "an entry of the list is empty")
		} else if d.value(e, entry) {
			v.Set(reflect.Append(v, e))
		} else {
			ok = false
		}
	}
	return ok
}

func (d *decoder) labels(v reflect.Value, n *yaml.Node) bool {
	labels := Labels{}
	ok := d.keys(n, func(k, value *yaml.Node) bool {
		if value.Kind != yaml.ScalarNode {
			return d.mistake(value.Line, "label %s: got %s, want one word", k.Value, kind(value))
		}
		if err := labels.check(k.Value, value.Value); err != nil {
			return d.mistake(k.Line, "%v", err)
		}
		labels[k.Value] = value.Value
		return true
	})
	if len(labels) > 0 {
		v.Set(reflect.ValueOf(labels))
	}
	return ok
}
