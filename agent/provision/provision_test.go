package provision

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func bundle() *Bundle {
	return &Bundle{Cluster: "home", Role: RoleServer, Created: time.Unix(1700000000, 0).UTC(),
		CACert: []byte("ca"), IntermediateCert: []byte("cert"), IntermediateKey: []byte("key")}
}

func TestTake(t *testing.T) {
	good, err := bundle().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	torn := append(make([]byte, 100), good[100:]...)
	for _, tt := range []struct {
		name     string
		firmware []byte // nil: no file
		state    []byte
		taken    bool
		wantErr  bool
		left     bool // the file stays on FIRMWARE
	}{
		{name: "none"},
		{name: "fresh", firmware: good, taken: true},
		{name: "cut after the copy", firmware: good, state: good, taken: true},
		{name: "cut while wiping", firmware: torn, state: good},
		{name: "cut while wiping, the end first", firmware: append(append([]byte(nil), good[:100]...), make([]byte, len(good)-100)...), state: good},
		{name: "cut before removal", firmware: make([]byte, len(good)), state: good},
		{name: "torn and never taken", firmware: torn, wantErr: true, left: true},
		{name: "garbage", firmware: []byte("{"), wantErr: true, left: true},
		{name: "garbage beside a taken one", firmware: []byte("{"), state: good, wantErr: true, left: true},
		{name: "too large", firmware: bytes.Repeat([]byte("x"), MaxSize+1), wantErr: true, left: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fw, st := t.TempDir(), filepath.Join(t.TempDir(), "state")
			if tt.firmware != nil {
				if err := os.WriteFile(filepath.Join(fw, FileName), tt.firmware, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if tt.state != nil {
				if err := os.MkdirAll(st, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(st, FileName), tt.state, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			taken, err := Take(fw, st)
			if taken != tt.taken || (err != nil) != tt.wantErr {
				t.Errorf("Take() = %v, %v; want %v, error %v", taken, err, tt.taken, tt.wantErr)
			}
			if _, err := os.Stat(filepath.Join(fw, FileName)); (err == nil) != tt.left {
				t.Errorf("bundle on FIRMWARE: %v; want left %v", err, tt.left)
			}
			if tt.taken {
				fi, err := os.Stat(filepath.Join(st, FileName))
				if err != nil || fi.Mode().Perm() != 0o600 {
					t.Errorf("kept bundle: %v, %v; want mode 0600", fi, err)
				}
				if b, err := Load(st); err != nil || b.Cluster != "home" {
					t.Errorf("Load() = %v, %v; want cluster home", b, err)
				}
			}
		})
	}
}

func TestParse(t *testing.T) {
	for _, bad := range []string{"", "{}", `{"cluster":"x"}`, `{"cluster":"x","role":"captain"}`, `{"unknown":1}`} {
		if b, err := Parse([]byte(bad)); err == nil {
			t.Errorf("Parse(%q) = %v; want an error", bad, b)
		}
	}
}

func TestStore(t *testing.T) {
	good, err := bundle().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		before []byte // in the state directory; nil: nothing
		data   []byte
		ok     bool
	}{
		{"fresh", nil, good, true},
		{"garbage", nil, []byte("{"), false},
		{"nothing", nil, nil, false},
		{"a second one", good, good, false},
		{"over one that cannot be read", []byte("{"), good, false},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, FileName)
		if tt.before != nil {
			if err := os.WriteFile(path, tt.before, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want := tt.before
		if tt.ok {
			want = tt.data
		}
		if err := Store(dir, tt.data); (err == nil) != tt.ok {
			t.Errorf("%s: Store() = %v; want success %v", tt.name, err, tt.ok)
		}
		if got, _ := os.ReadFile(path); !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes are kept, want %d", tt.name, len(got), len(want))
		}
	}
}
