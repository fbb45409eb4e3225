package deb

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"pault.ag/go/debian/control"
)

// MirrorEnv names the variable that takes the place of the host's own apt
// sources: the archive's address and, after a space, that of the security
// archive where it is not the archive's address with "-security" added.
const MirrorEnv = "SKERRY_DEBIAN_MIRROR"

// Mirrors are the addresses of Debian's archives, without a slash at the end.
type Mirrors map[Kind]string

// Kind is one of Debian's archives.
type Kind string

// The archives that Skerry takes packages from.
const (
	Main     Kind = "debian"
	Security Kind = "debian-security"
)

// FindMirrors reads $SKERRY_DEBIAN_MIRROR or, without that, the apt sources
// below aptDir (/etc/apt).
func FindMirrors(aptDir string) (Mirrors, error) {
	if env := strings.Fields(os.Getenv(MirrorEnv)); len(env) > 0 {
		return mirrorsOf(env)
	}
	sources, err := readSources(aptDir)
	if err != nil {
		return nil, err
	}
	m := Mirrors{}
	// An entry that names Debian's keyring is certain; one without a keyring
	// is only likely, so it comes second.
	for _, certain := range []bool{true, false} {
		for _, s := range sources {
			kind, ok := s.kind()
			if ok && m[kind] == "" && certain == s.debianKey() {
				m[kind] = s.uri
			}
		}
	}
	if m[Main] == "" {
		return nil, fmt.Errorf("no Debian archive in the apt sources below %q: set %s to one, for example to what your other Debian machines have there", aptDir, MirrorEnv)
	}
	if m[Security] == "" {
		m[Security] = m[Main] + "-security"
	}
	return m, nil
}

func mirrorsOf(env []string) (Mirrors, error) {
	if len(env) > 2 {
		return nil, fmt.Errorf("%s holds %d addresses: want the archive's and perhaps the security archive's", MirrorEnv, len(env))
	}
	for i := range env {
		u, err := url.Parse(env[i])
		if err != nil || !fetchable(u) {
			return nil, fmt.Errorf("%s holds %q: want an address that starts with http:// or https://", MirrorEnv, env[i])
		}
		env[i] = strings.TrimRight(env[i], "/")
	}
	if len(env) == 1 {
		env = append(env, env[0]+"-security")
	}
	return Mirrors{Main: env[0], Security: env[1]}, nil
}

func fetchable(u *url.URL) bool {
	return (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

// source is one archive and one suite of an apt source.
type source struct {
	uri, suite string
	components []string
	signedBy   string
}

func (s source) debianKey() bool {
	return strings.HasPrefix(path.Base(s.signedBy), "debian-archive-")
}

var debianSuites = regexp.MustCompile(`^(oldoldstable|oldstable|stable|testing|unstable|sid|experimental|buster|bullseye|bookworm|trixie|forky|duke)(-updates|-proposed-updates|-backports|-backports-sloppy)?$`)

// kind says which of Debian's archives this is. Vendors like to publish their
// packages under Debian's suite names, but then sign them with their own key;
// the signature check is what decides in the end.
func (s source) kind() (Kind, bool) {
	u, err := url.Parse(s.uri)
	if err != nil || !fetchable(u) || s.signedBy != "" && !s.debianKey() {
		return "", false
	}
	base := strings.TrimSuffix(strings.TrimSuffix(s.suite, "-security"), "/updates")
	switch {
	case !slices.Contains(s.components, "main"), !debianSuites.MatchString(base):
		return "", false
	case base != s.suite:
		return Security, true
	}
	return Main, true
}

// readSources reads what apt reads, in apt's order.
func readSources(aptDir string) ([]source, error) {
	files := []string{filepath.Join(aptDir, "sources.list")}
	parts, err := os.ReadDir(filepath.Join(aptDir, "sources.list.d"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read apt sources: %w", err)
	}
	for _, p := range parts {
		files = append(files, filepath.Join(aptDir, "sources.list.d", p.Name()))
	}
	var all []source
	for _, name := range files {
		parse := parseOneLine
		switch filepath.Ext(name) {
		case ".list":
		case ".sources":
			parse = parseDeb822
		default:
			continue
		}
		text, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read apt sources: %w", err)
		}
		found, err := parse(text)
		if err != nil {
			return nil, fmt.Errorf("read apt source %q (%s would replace it): %w", name, MirrorEnv, err)
		}
		all = append(all, found...)
	}
	return all, nil
}

// parseOneLine reads "deb [signed-by=…] address suite component…".
func parseOneLine(text []byte) ([]source, error) {
	var all []source
	for _, line := range strings.Split(string(text), "\n") {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(strings.ReplaceAll(line, "\t", " ")), "deb ")
		if !ok {
			continue
		}
		s := source{}
		rest = strings.TrimSpace(rest)
		if options, after, ok := strings.Cut(strings.TrimPrefix(rest, "["), "]"); ok && rest[0] == '[' {
			for _, o := range strings.Fields(options) {
				if key, value, _ := strings.Cut(o, "="); strings.EqualFold(key, "signed-by") {
					s.signedBy = value
				}
			}
			rest = after
		}
		words := strings.Fields(rest)
		if len(words) < 2 {
			return nil, fmt.Errorf("line %q: want an address and a suite", strings.TrimSpace(line))
		}
		s.uri, s.suite, s.components = strings.TrimRight(words[0], "/"), words[1], words[2:]
		all = append(all, s)
	}
	return all, nil
}

// parseDeb822 reads the paragraphs of a .sources file.
func parseDeb822(text []byte) ([]source, error) {
	paragraphs, err := control.NewParagraphReader(bytes.NewReader(text), nil)
	if err != nil {
		return nil, err
	}
	var all []source
	for {
		p, err := paragraphs.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, errors.New(strings.Join(strings.Fields(err.Error()), " ")) // it quotes whole lines
		}
		field := map[string]string{}
		for key, value := range p.Values {
			field[strings.ToLower(key)] = strings.TrimSpace(value)
		}
		switch strings.ToLower(field["enabled"]) {
		case "no", "false", "without", "off", "disable", "0":
			continue
		}
		if !slices.Contains(strings.Fields(field["types"]), "deb") {
			continue
		}
		for _, uri := range strings.Fields(field["uris"]) {
			for _, suite := range strings.Fields(field["suites"]) {
				all = append(all, source{
					uri: strings.TrimRight(uri, "/"), suite: suite,
					components: strings.Fields(field["components"]), signedBy: field["signed-by"],
				})
			}
		}
	}
}
