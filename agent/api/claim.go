package api

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"strings"
)

// ClaimPath is the only thing that a node without a cluster serves.
const ClaimPath = "/v1/claim"

// Unclaimed is what such a node says of itself.
type Unclaimed struct {
	Name    string `json:"name"`
	Board   string `json:"board,omitempty"`
	Version string `json:"version,omitempty"`
	Claimed bool   `json:"claimed"` // false, or nobody would answer
}

// ClaimRequest takes a node into a cluster.
type ClaimRequest struct {
	Code   string          `json:"code"`   // one-time, from the console
	Bundle json.RawMessage `json:"bundle"` // package provision
}

// Sizes of what stands on the console, in characters of five bits: 80 bits
// that nobody can find a second key for, and 40 bits that nobody can guess in
// a handful of tries.
const (
	fingerprintLength = 16
	CodeLength        = 8
)

// typed is Crockford's base32: no I, L, O or U, so nothing looks like another.
var typed = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

// Fingerprint is the beginning of the SHA-256 of a certificate's public key.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return Group(typed.EncodeToString(sum[:])[:fingerprintLength])
}

// NewCode makes a code of random bytes, of which it takes five.
func NewCode(random []byte) string { return Group(typed.EncodeToString(random[:CodeLength*5/8])) }

// Group puts hyphens between groups of four.
func Group(s string) string {
	var groups []string
	for ; len(s) > 4; s = s[4:] {
		groups = append(groups, s[:4])
	}
	return strings.Join(append(groups, s), "-")
}

var lookAlike = strings.NewReplacer("-", "", " ", "", "O", "0", "I", "1", "L", "1")

// ParseFingerprint reads what a person has typed, however it is grouped.
func ParseFingerprint(s string) (string, error) { return parse("fingerprint", s, fingerprintLength) }

// ParseCode does the same for a code.
func ParseCode(s string) (string, error) { return parse("code", s, CodeLength) }

func parse(what, s string, length int) (string, error) {
	plain := lookAlike.Replace(strings.ToUpper(strings.TrimSpace(s)))
	if _, err := typed.DecodeString(plain); err != nil || len(plain) != length {
		return "", fmt.Errorf("%s: got %d characters, want %d letters and digits, as the node's console shows them", what, len(plain), length)
	}
	return Group(plain), nil
}
