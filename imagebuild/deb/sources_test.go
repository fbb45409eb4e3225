package deb

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindMirrors(t *testing.T) {
	const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	both := Mirrors{Main: "http://m.example/debian", Security: "http://s.example/debian-security"}
	for _, c := range []struct {
		name  string
		env   string
		files map[string]string // by name below the apt folder
		want  Mirrors           // nil: an error
	}{
		{"deb822", "", map[string]string{"sources.list.d/debian.sources": `
# a comment
Types: deb deb-src
# between fields
URIs: http://m.example/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: ` + keyring + `

types: deb
uris: http://s.example/debian-security
suites: bookworm-security
components: main
signed-by: ` + keyring + "\n"}, both},
		{"one line each", "", map[string]string{"sources.list": `
# deb http://commented.example/debian trixie main
deb-src http://src.example/debian trixie main
deb [ arch=amd64 signed-by=` + keyring + ` ] http://m.example/debian/ trixie main contrib # why
deb	http://s.example/debian-security trixie-security main
`}, both},
		{"old security suite", "", map[string]string{"sources.list": "deb http://m.example/debian stable main\ndeb http://s.example/debian-security stable/updates main\n"}, both},
		{"security archive derived", "", map[string]string{"sources.list": "deb https://m.example/debian trixie main\n"},
			Mirrors{Main: "https://m.example/debian", Security: "https://m.example/debian-security"}},
		{"foreign archives first", "", map[string]string{
			"sources.list": "deb [signed-by=/k/docker.gpg] https://docker.example/linux/debian trixie main\n" +
				"deb http://pg.example/pub trixie-pgdg main\ndeb https://cloud.example/apt cloud-sdk main\ndeb https://r.example/debian trixie stable\n",
			"sources.list.d/a.sources": "Types: deb\nURIs: https://vendor.example/debian\nSuites: trixie\nComponents: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n",
			"sources.list.d/z.list":    "deb http://m.example/debian trixie main\ndeb http://s.example/debian-security trixie-security main\n",
		}, both},
		{"one with Debian's keyring is preferred", "", map[string]string{
			"sources.list":          "deb http://unsure.example/raspbian trixie main\n",
			"sources.list.d/z.list": "deb [signed-by=" + keyring + "] http://m.example/debian trixie main\ndeb http://s.example/debian-security trixie-security main\n",
		}, both},
		{"switched off, not of apt, not over http", "", map[string]string{
			"sources.list.d/a.sources":      "Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: trixie\nComponents: main\n",
			"sources.list.d/a.sources.save": "Types: deb\nURIs: http://save.example/debian\nSuites: trixie\nComponents: main\n",
			"sources.list":                  "deb cdrom:[Debian]/ trixie main\ndeb file:/srv/debian trixie main\n",
			"sources.list.d/z.list":         "deb http://m.example/debian trixie main\ndeb http://s.example/debian-security trixie-security main\n",
		}, both},
		{"another distribution", "", map[string]string{"sources.list": "deb http://u.example/ubuntu noble main\n"}, nil},
		{"no sources", "", nil, nil},
		{"broken source", "", map[string]string{"sources.list": "deb http://m.example/debian\n"}, nil},
		{"broken deb822 source", "", map[string]string{"sources.list.d/x.sources": "Types: deb\nhttp//m.example/debian\n"}, nil},
		{"environment wins", "http://m.example/debian/ http://s.example/debian-security", map[string]string{"sources.list": "deb http://other.example/debian trixie main\n"}, both},
		{"environment, one address", " http://m.example/debian", nil, Mirrors{Main: "http://m.example/debian", Security: "http://m.example/debian-security"}},
		{"environment, not an address", "m.example/debian", nil, nil},
		{"environment, too many", "http://a http://b http://c", nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.files {
				name = filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv(MirrorEnv, c.env)
			got, err := FindMirrors(dir)
			if c.want == nil {
				if err == nil || !strings.Contains(err.Error(), MirrorEnv) || strings.Contains(err.Error(), "\n") {
					t.Errorf("FindMirrors = %v, %v, want an error of one line that names %s", got, err, MirrorEnv)
				}
				return
			}
			if err != nil || !maps.Equal(got, c.want) {
				t.Errorf("FindMirrors = %v, %v, want %v", got, err, c.want)
			}
		})
	}
}
