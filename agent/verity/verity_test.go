package verity

import (
	"encoding/binary"
	"strings"
	"testing"
)

func TestParams(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	p, err := ParseParams("/dev/vda2", "67108864", "134217728", hash)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.linear().Params, "/dev/vda2 131072"; got != want {
		t.Errorf("linear() = %q; want %q", got, want)
	}
	if got, want := p.verity("/dev/dm-0", "00ff").Params, "1 /dev/dm-0 /dev/vda2 4096 4096 16384 32769 sha256 "+hash+" 00ff"; got != want {
		t.Errorf("verity() = %q; want %q", got, want)
	}
	if got := p.verity("/dev/dm-0", "-").Length; got != 131072 {
		t.Errorf("verity() length = %d sectors; want 131072", got)
	}
	for _, bad := range [][3]string{
		{"", "8192", hash}, {"0", "", hash}, {"4096", "4096", hash}, {"8192", "4096", hash}, {"1", "4096", hash},
		{"0", "4097", hash}, {"-4096", "4096", hash}, {"0", "4096", ""}, {"0", "4096", hash[2:]}, {"0", "4096", strings.Repeat("zz", 32)},
	} {
		if _, err := ParseParams("/dev/vda2", bad[0], bad[1], bad[2]); err == nil {
			t.Errorf("ParseParams(%q) = nil; want an error", bad)
		}
	}
}

func TestParseSuperblock(t *testing.T) {
	good := func() []byte {
		sb := make([]byte, sector)
		copy(sb, "verity\x00\x00")
		le := binary.LittleEndian
		le.PutUint32(sb[8:], 1)
		le.PutUint32(sb[12:], 1)
		copy(sb[32:], "sha256")
		le.PutUint32(sb[64:], BlockSize)
		le.PutUint32(sb[68:], BlockSize)
		le.PutUint64(sb[72:], 7)
		le.PutUint16(sb[80:], 2)
		copy(sb[88:], "\x01\xfe\xaa")
		return sb
	}
	if salt, err := parseSuperblock(good(), 7); salt != "01fe" || err != nil {
		t.Errorf("parseSuperblock() = %q, %v; want 01fe", salt, err)
	}
	if salt, err := parseSuperblock(append(good()[:80], make([]byte, 432)...), 7); salt != "-" || err != nil {
		t.Errorf("parseSuperblock() without salt = %q, %v; want -", salt, err)
	}
	for name, spoil := range map[string]func([]byte){
		"magic": func(b []byte) { b[0] = 0 }, "version": func(b []byte) { b[8] = 2 }, "type": func(b []byte) { b[12] = 0 },
		"algorithm": func(b []byte) { copy(b[32:], "sha512") }, "data block": func(b []byte) { b[65] = 2 },
		"hash block": func(b []byte) { b[69] = 2 }, "blocks": func(b []byte) { b[72] = 8 }, "salt": func(b []byte) { b[81] = 2 },
	} {
		sb := good()
		spoil(sb)
		if salt, err := parseSuperblock(sb, 7); err == nil {
			t.Errorf("parseSuperblock() with a wrong %s = %q; want an error", name, salt)
		}
	}
}

func TestParseStatus(t *testing.T) {
	for status, want := range map[string]bool{"V": false, "C": true, "C \n": true} {
		if got, err := parseStatus(status); err != nil || got != want {
			t.Errorf("parseStatus(%q) = %v, %v; want %v", status, got, err, want)
		}
	}
	for _, status := range []string{"", "0 8 V", "corrupted"} {
		if _, err := parseStatus(status); err == nil {
			t.Errorf("parseStatus(%q) = nil; want an error", status)
		}
	}
}
