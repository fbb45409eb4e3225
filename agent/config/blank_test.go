package config

import (
	"strings"
	"testing"
)

func TestBlank(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"no secret", "hostname: barn-1\nntp: [10.0.0.1]\n", "hostname: barn-1\nntp: [10.0.0.1]\n"},
		{"password", "registries:\n- host: a\n  password: hunter2\n", "registries:\n  - host: a\n    password: (blanked)\n"},
		{"nested", "auth: {user: u, word: hunter2}\n", "auth: (blanked)\n"},
		{"an alias", "token: &t hunter2\nx: 1\n", "token: (blanked)\nx: 1\n"},
		{"block", "privateKey: |\n  hunter2\n  more\n", "privateKey: (blanked)\n"},
		{"URL", "mirrors: [\"https://me:hunter2@m.lan\"]\n", "mirrors: [\"https://(blanked)@m.lan\"]\n"},
		{"comment", "# hunter2\na: 1 # hunter2\n", "a: 1\n"},
		{"not YAML", "a: [hunter2\n", "# left out: 12 bytes that are not YAML\n"},
	} {
		got := string(Blank([]byte(tt.text)))
		if got != tt.want || strings.Contains(got, "hunter2") {
			t.Errorf("%s: Blank(%q) = %q; want %q", tt.name, tt.text, got, tt.want)
		}
	}
	// What an alias points to must not come back by another name.
	if got := string(Blank([]byte("password: &p hunter2\nx: *p\n"))); strings.Contains(got, "hunter2") {
		t.Errorf("Blank() of an alias = %q; want it without the secret", got)
	}
}
