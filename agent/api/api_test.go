package api

import (
	"reflect"
	"strings"
	"testing"
)

func TestTXT(t *testing.T) {
	for _, want := range []Announcement{
		{},
		{Version: "1.2.3", Cluster: "home", Role: "server", Board: "rpi4", Claimed: true, ID: "00ff"},
	} {
		if got := ParseTXT(want.TXT()); got != want {
			t.Errorf("ParseTXT(TXT()) = %+v; want %+v", got, want)
		}
	}
	for _, s := range (Announcement{Version: strings.Repeat("x", 1000)}).TXT() {
		if len(s) > maxText {
			t.Errorf("a string of %d bytes; want at most %d", len(s), maxText)
		}
	}
	if got := ParseTXT([]string{"VERSION=1", "nonsense", "=", "claimed=maybe", "later=x"}); !reflect.DeepEqual(got, Announcement{Version: "1"}) {
		t.Errorf("ParseTXT() = %+v; want the version only", got)
	}
}

func TestTyped(t *testing.T) {
	code := NewCode([]byte{0, 0x44, 0x32, 0xff, 0xfe})
	if code != "0123-5ZZY" {
		t.Errorf("NewCode() = %q; want 0123-5ZZY", code)
	}
	for in, want := range map[string]string{
		"0OO1-iLl1": "0001-1111", " abcd efgh ": "ABCD-EFGH", "ABCDEFGH": "ABCD-EFGH",
		"ABCD-EFG": "", "ABCD-EFGHJ": "", "ABCD-EFGU": "", "": "", "ABCD-EFG\x00": "",
	} {
		if got, err := ParseCode(in); got != want || (err == nil) != (want != "") {
			t.Errorf("ParseCode(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	if got, err := ParseFingerprint("k7qd2mxn 93te-b4vw"); got != "K7QD-2MXN-93TE-B4VW" || err != nil {
		t.Errorf("ParseFingerprint() = %q, %v", got, err)
	}
}
