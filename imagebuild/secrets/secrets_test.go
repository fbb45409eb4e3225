package secrets

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func key(t *testing.T) []byte {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func token() []byte {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	return []byte(part(`{"alg":"RS256","typ":"JWT"}`) + "." + part(`{"iss":"kubernetes","sub":"a"}`) + "." + part(strings.Repeat("signature", 5)))
}

func in64(b []byte) []byte { return []byte(`"key": "` + base64.StdEncoding.EncodeToString(b) + `"`) }

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zst(b []byte) []byte {
	w, _ := zstd.NewWriter(nil)
	return w.EncodeAll(b, nil)
}

func tarOf(b []byte) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	w.WriteHeader(&tar.Header{Name: "dir/file", Size: int64(len(b)), Mode: 0o644})
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func TestScan(t *testing.T) {
	filler := bytes.Repeat([]byte("nothing to see here "), 1000)
	k := key(t)
	for name, tt := range map[string]struct {
		in   []byte
		want string // part of the finding; empty: none
	}{
		"nothing":                  {filler, ""},
		"empty":                    {nil, ""},
		"header alone":             {[]byte("-----BEGIN RSA PRIVATE KEY-----\n%s"), ""},
		"public key":               {bytes.ReplaceAll(k, []byte("PRIVATE"), []byte("PUBLIC")), ""},
		"key":                      {k, "private key"},
		"RSA key":                  {bytes.ReplaceAll(k, []byte("PRIVATE"), []byte("RSA PRIVATE")), "private key"},
		"encrypted key":            {bytes.Replace(k, []byte("-----\n"), []byte("-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES,00\n\n"), 1), "private key"},
		"key in text":              {append(filler, k...), "byte 20000"},
		"across a chunk":           {append(make([]byte, chunk+overlap-30), k...), "private key"},
		"across the first overlap": {append(make([]byte, chunk-30), k...), "private key"},
		"key in base64":            {in64(k), "a private key in base64"},
		"public key in base64":     {in64(bytes.ReplaceAll(k, []byte("PRIVATE"), []byte("PUBLIC"))), ""},
		"base64 across a chunk":    {append(make([]byte, chunk+overlap-30), in64(k)...), "a private key in base64"},
		"token":                    {append(filler, token()...), "a token"},
		"packed":                   {gz(append(filler, k...)), "gzip"},
		"packed twice":             {zst(tarOf(gz(token()))), "dir/file: gzip"},
	} {
		found, err := Scan(bytes.NewReader(tt.in), "x")
		if err != nil {
			t.Errorf("Scan(%s): %v", name, err)
		}
		if tt.want == "" && len(found) > 0 {
			t.Errorf("Scan(%s) = %v; want nothing", name, found)
		}
		if tt.want != "" && (len(found) != 1 || !strings.Contains(found[0].String(), tt.want)) {
			t.Errorf("Scan(%s) = %v; want one with %q", name, found, tt.want)
		}
	}
}
