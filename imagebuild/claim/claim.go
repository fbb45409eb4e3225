// Package claim takes a node without a cluster into one: it asks the node who
// it is, and sends it a provisioning bundle once the node has proven that it is
// the one whose console shows the fingerprint.
//
// Left out: making the bundle (package cluster), finding the node (package
// discover), asking the person.
package claim

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"skerry.internal/skerry/agent/api"
)

const (
	limit     = 30 * time.Second // of one exchange
	maxAnswer = 64 << 10
	maxWaits  = 5 // pauses that the node may ask for
)

// ErrFingerprint is a node, or whoever answers in its place, with another key
// than the one on the console.
var ErrFingerprint = errors.New("the fingerprint is another")

// Look asks who answers at address. Nothing of it is proven.
func Look(ctx context.Context, address string) (*api.Unclaimed, error) {
	answer, err := exchange(ctx, address, "", http.MethodGet, nil)
	if err != nil {
		return nil, err
	}
	var u api.Unclaimed
	if err := json.Unmarshal(answer, &u); err != nil {
		return nil, fmt.Errorf("ask %s: the answer is no unclaimed node's: %w", address, err)
	}
	u.Name, u.Board, u.Version = clean(u.Name), clean(u.Board), clean(u.Version)
	return &u, nil
}

// Send claims the node at address, which must prove fingerprint, with the code
// of its console.
func Send(ctx context.Context, address, fingerprint, code string, bundle []byte) error {
	want, err := api.ParseFingerprint(fingerprint)
	if err != nil {
		return err
	}
	if code, err = api.ParseCode(code); err != nil {
		return err
	}
	body, err := json.Marshal(api.ClaimRequest{Code: code, Bundle: bundle})
	if err != nil {
		return fmt.Errorf("encode claim: %w", err)
	}
	for waits := 0; ; waits++ {
		_, err := exchange(ctx, address, want, http.MethodPost, body)
		var busy *busyError
		if !errors.As(err, &busy) || waits == maxWaits {
			return err
		}
		select {
		case <-time.After(min(busy.wait, limit)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// busyError is a node that wants to be left alone for a while.
type busyError struct {
	wait time.Duration
	text string
}

func (e *busyError) Error() string { return e.text }

// exchange makes one request. With a fingerprint, the node must have it before
// a byte of the request is sent.
func exchange(ctx context.Context, address, fingerprint, method string, body []byte) ([]byte, error) {
	t := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The key is what is compared: there is no name, no CA and no time that both sides know.
		InsecureSkipVerify: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			if got := api.Fingerprint(c.PeerCertificates[0]); fingerprint != "" && got != fingerprint {
				return fmt.Errorf("%w: got %s, want %s: this is not the node before you, or it has been started anew", ErrFingerprint, got, fingerprint)
			}
			return nil
		},
	}}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, (&url.URL{Scheme: "https", Host: address, Path: api.ClaimPath}).String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", address, err)
	}
	answer, err := (&http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", address, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read answer of %s: %w", address, err)
	}
	switch answer.StatusCode {
	case http.StatusOK, http.StatusNoContent:
		return text, nil
	case http.StatusTooManyRequests:
		seconds, _ := strconv.Atoi(answer.Header.Get("Retry-After"))
		return nil, &busyError{time.Duration(max(seconds, 1)) * time.Second, fmt.Sprintf("%s says: %s", address, clean(string(text)))}
	case http.StatusNotFound:
		return nil, fmt.Errorf("%s is no unclaimed node: it serves no claims", address)
	}
	return nil, fmt.Errorf("%s says: %s", address, clean(string(text)))
}

// clean keeps what a stranger says on one line of a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
}
