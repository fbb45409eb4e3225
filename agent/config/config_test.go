package config

import (
	"bytes"
	"reflect"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     Config
		lines    []int // of the mistakes, in order
	}{
		{name: "empty"},
		{name: "comments", in: "# hostname: x\n"},
		{name: "all", in: "hostname: barn-1\nntp: [10.0.0.1]\nregistries:\n- host: docker.io\n  mirrors: [\"http://10.0.0.5:5000\"]\n",
			want: Config{Hostname: "barn-1", NTP: []string{"10.0.0.1"}, Registries: []Registry{{Host: "docker.io", Mirrors: []string{"http://10.0.0.5:5000"}}}}},
		{name: "windows editor", in: "\xef\xbb\xbfhostname: barn-1\r\n", want: Config{Hostname: "barn-1"}},
		{name: "unknown key", in: "hostnam: x\nhostname: y\n", want: Config{Hostname: "y"}, lines: []int{1}},
		{name: "twice", in: "hostname: x\nhostname: y\n", want: Config{Hostname: "x"}, lines: []int{2}},
		{name: "wrong type", in: "hostname: [x]\nntp: [a]\n", want: Config{NTP: []string{"a"}}, lines: []int{1}},
		{name: "bad name", in: "\nhostname: Barn_1\n", lines: []int{2}},
		{name: "unknown inner key", in: "registries:\n- hosts: x\n", lines: []int{1}},
		{name: "mirror without scheme", in: "registries:\n- host: x\n  mirrors: [y]\n", lines: []int{1}},
		{name: "tab", in: "hostname: x\n\tntp: y\n", lines: []int{2}},
		{name: "list", in: "- a\n", lines: []int{1}},
		{name: "binary", in: "\x00\x01\xff", lines: []int{0}},
		{name: "huge", in: string(bytes.Repeat([]byte("#"), MaxSize+1)), lines: []int{0}},
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
			}
			if !reflect.DeepEqual(lines, tt.lines) {
				t.Errorf("Parse() mistakes in lines %v; want %v", lines, tt.lines)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("hostname: x\nregistries: [{host: a, mirrors: [http://b]}]"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, _ := Parse(data)
		if c == nil {
			t.Fatal("Parse() = nil")
		}
		if c.Hostname != "" && CheckHostname(c.Hostname) != nil {
			t.Errorf("Parse() let hostname %q through", c.Hostname)
		}
	})
}
