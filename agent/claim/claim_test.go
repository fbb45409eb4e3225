package claim_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/claim"
	"skerry.internal/skerry/agent/provision"
	client "skerry.internal/skerry/imagebuild/claim"
	"skerry.internal/skerry/imagebuild/cluster"
)

const patience = time.Minute

// card is an unclaimed node.
type card struct {
	t       *testing.T
	address string
	state   string
	shown   chan [2]string // fingerprint and code, each time they are shown
	ended   chan *provision.Bundle
	keep    func([]byte) error
}

func newCard(t *testing.T, change ...func(*claim.Config)) *card {
	t.Helper()
	c := &card{t: t, state: t.TempDir(), shown: make(chan [2]string, 100), ended: make(chan *provision.Bundle, 1)}
	cfg := claim.Config{
		Node: api.Unclaimed{Name: "barn-1", Board: "rpi4", Version: "1.2.3"},
		Keep: func(data []byte) error { return provision.Store(c.state, data) },
		Show: func(fingerprint, code string) { c.shown <- [2]string{fingerprint, code} }, Printf: t.Logf, Errorf: t.Logf,
	}
	for _, f := range change {
		f(&cfg)
	}
	s, err := claim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if b, err := s.Serve(ctx, l); err == nil {
			c.ended <- b
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return c
}

// screen waits for what is shown next.
func (c *card) screen() (fingerprint, code string) {
	c.t.Helper()
	select {
	case s := <-c.shown:
		return s[0], s[1]
	case <-time.After(patience):
		c.t.Fatal("nothing is shown")
		return "", ""
	}
}

func (c *card) stored() bool {
	_, err := os.Stat(filepath.Join(c.state, provision.FileName))
	return err == nil
}

// post sends any body and returns the answer. What it sees is not verified.
func (c *card) post(body []byte) (status int, text string) {
	c.t.Helper()
	r := c.send(body)
	if r == nil {
		return 0, ""
	}
	data, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(data)
}

// send does that and returns nil when nobody answers.
func (c *card) send(body []byte) *http.Response {
	c.t.Helper()
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	r, err := web.Post("https://"+c.address+api.ClaimPath, "application/json", bytes.NewReader(body))
	if err != nil {
		return nil
	}
	c.t.Cleanup(func() { r.Body.Close() })
	return r
}

func bundle(t *testing.T, name string, made time.Time) []byte {
	t.Helper()
	c, err := cluster.Create(t.TempDir(), name, made)
	if err != nil {
		t.Fatal(err)
	}
	data, err := c.Bundle(made)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func request(t *testing.T, code string, bundle []byte) []byte {
	t.Helper()
	data, err := json.Marshal(api.ClaimRequest{Code: code, Bundle: bundle})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestClaim(t *testing.T) {
	c := newCard(t)
	fingerprint, code := c.screen()
	u, err := client.Look(t.Context(), c.address)
	if want := (api.Unclaimed{Name: "barn-1", Board: "rpi4", Version: "1.2.3"}); err != nil || *u != want {
		t.Errorf("Look() = %+v, %v; want %+v", u, err, want)
	}
	// As people type.
	typed := strings.ToLower(strings.ReplaceAll(fingerprint, "-", " "))
	b := bundle(t, "home", time.Now())
	if err := client.Send(t.Context(), c.address, typed, strings.ReplaceAll(code, "-", ""), b); err != nil {
		t.Fatal(err)
	}
	got := <-c.ended
	if got == nil || got.Cluster != "home" {
		t.Errorf("Serve() = %+v; want the bundle of home", got)
	}
	path := filepath.Join(c.state, provision.FileName)
	st, err := os.Stat(path)
	if err != nil || st.Mode() != 0o600 {
		t.Errorf("bundle = %v, %v; want a file of mode 0600", st, err)
	}
	if kept, err := provision.Load(c.state); err != nil || kept.Cluster != "home" {
		t.Errorf("Load() = %+v, %v; want the bundle of home", kept, err)
	}
	// A replay finds nobody, and a second start of the same card would keep its cluster.
	if status, text := c.post(request(t, code, b)); status != 0 {
		t.Errorf("replay: status %d, %q; want nobody to answer", status, text)
	}
	if err := provision.Store(c.state, bundle(t, "other", time.Now())); !errors.Is(err, os.ErrExist) {
		t.Errorf("Store() over a bundle = %v; want it refused", err)
	}
}

// Each of these is refused, and the right claim succeeds afterwards.
func TestRefused(t *testing.T) {
	good := bundle(t, "home", time.Now())
	old := bundle(t, "home", time.Now().Add(-30*365*24*time.Hour)) // its CA lived for twenty
	var mixed, other provision.Bundle
	if err := errors.Join(json.Unmarshal(good, &mixed), json.Unmarshal(bundle(t, "home", time.Now()), &other)); err != nil {
		t.Fatal(err)
	}
	mixed.CACert = other.CACert
	foreign, err := mixed.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		body   func(code string) []byte
		status int
		want   string
	}{
		{"wrong code", func(string) []byte { return request(t, "0000-0000", good) }, http.StatusForbidden, "wrong code"},
		{"no code", func(string) []byte { return request(t, "", good) }, http.StatusForbidden, "wrong code"},
		{"no JSON", func(string) []byte { return []byte("code") }, http.StatusBadRequest, "no claim"},
		{"nothing", func(string) []byte { return nil }, http.StatusBadRequest, "no claim"},
		{"garbage for a bundle", func(code string) []byte { return request(t, code, []byte(`{"a":1}`)) }, http.StatusUnprocessableEntity, "unknown field"},
		{"no bundle", func(code string) []byte { return fmt.Appendf(nil, `{"code":%q}`, code) }, http.StatusUnprocessableEntity, "EOF"},
		{"expired CA", func(code string) []byte { return request(t, code, old) }, http.StatusUnprocessableEntity, "expired"},
		{"another cluster's CA", func(code string) []byte { return request(t, code, foreign) }, http.StatusUnprocessableEntity, "unknown authority"},
		{"too large", func(code string) []byte { return append(request(t, code, good), bytes.Repeat([]byte(" "), 2<<20)...) }, http.StatusRequestEntityTooLarge, "larger"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCard(t)
			fingerprint, code := c.screen()
			status, text := c.post(tt.body(code))
			if status != tt.status || !strings.Contains(text, tt.want) {
				t.Errorf("status %d, %q; want %d and %q", status, text, tt.status, tt.want)
			}
			if c.stored() {
				t.Error("a bundle was kept")
			}
			if err := client.Send(t.Context(), c.address, fingerprint, code, good); err != nil {
				t.Errorf("the right claim, afterwards: %v", err)
			}
		})
	}
}

// Whoever answers with another key gets neither code nor bundle.
func TestWrongFingerprint(t *testing.T) {
	c := newCard(t, func(cfg *claim.Config) { cfg.Keep = func([]byte) error { t.Error("a bundle has come"); return nil } })
	_, code := c.screen()
	other, _ := newCard(t).screen()
	err := client.Send(t.Context(), c.address, other, code, bundle(t, "home", time.Now()))
	if !errors.Is(err, client.ErrFingerprint) {
		t.Errorf("Send() = %v; want %v", err, client.ErrFingerprint)
	}
}

func TestFiveTries(t *testing.T) {
	t.Parallel()
	c := newCard(t, func(cfg *claim.Config) { cfg.FirstPause = 100 * time.Millisecond })
	fingerprint, code := c.screen()
	good := bundle(t, "home", time.Now())
	var waits []string // in seconds, rounded up
	for try := 1; try <= 5; try++ {
		err := client.Send(t.Context(), c.address, fingerprint, "0000-0000", good) // waits as long as it is told to
		if err == nil || !strings.Contains(err.Error(), "wrong code") {
			t.Fatalf("try %d = %v; want a wrong code", try, err)
		}
		// At once, even the right code is not looked at.
		r := c.send(request(t, code, good))
		if r == nil || r.StatusCode != http.StatusTooManyRequests {
			t.Fatalf("right after try %d: %+v, want status %d", try, r, http.StatusTooManyRequests)
		}
		waits = append(waits, r.Header.Get("Retry-After"))
	}
	if want := []string{"1", "1", "1", "1", "2"}; !slices.Equal(waits, want) {
		t.Errorf("pauses = %q s, want %q: each twice as long as the one before", waits, want)
	}
	_, next := c.screen()
	if next == code {
		t.Error("the code is the same after five wrong tries; want a new one")
	}
	if err := client.Send(t.Context(), c.address, fingerprint, code, good); err == nil || c.stored() {
		t.Errorf("the old code = %v; want it refused", err)
	}
	if err := client.Send(t.Context(), c.address, fingerprint, next, good); err != nil || !c.stored() {
		t.Errorf("the new code = %v; want it to do", err)
	}
}

func TestCodeRunsOut(t *testing.T) {
	c := newCard(t, func(cfg *claim.Config) { cfg.CodeLife = 500 * time.Millisecond })
	fingerprint, code := c.screen()
	again, next := c.screen()
	if again != fingerprint || next == code {
		t.Errorf("shown next: %s %s, before %s %s; want the same fingerprint and a new code", again, next, fingerprint, code)
	}
	if status, _ := c.post(request(t, code, bundle(t, "home", time.Now()))); status != http.StatusForbidden {
		t.Errorf("the old code: status %d, want %d", status, http.StatusForbidden)
	}
}

// Of many who know the code, one gets the node.
func TestConcurrent(t *testing.T) {
	var mu sync.Mutex
	var kept []string
	c := newCard(t, func(cfg *claim.Config) {
		cfg.Keep = func(data []byte) error {
			b, err := provision.Parse(data)
			if err == nil {
				mu.Lock()
				kept = append(kept, b.Cluster)
				mu.Unlock()
			}
			return err
		}
	})
	fingerprint, code := c.screen()
	won := make(chan string, 8)
	var all sync.WaitGroup
	for i := range cap(won) {
		name := fmt.Sprintf("home-%d", i)
		b := bundle(t, name, time.Now())
		all.Go(func() {
			if client.Send(t.Context(), c.address, fingerprint, code, b) == nil {
				won <- name
			}
		})
	}
	all.Wait()
	close(won)
	var winners []string
	for name := range won {
		winners = append(winners, name)
	}
	if len(kept) != 1 || len(winners) != 1 || kept[0] != winners[0] {
		t.Errorf("kept for %q, told %q that they have it; want one, and the same", kept, winners)
	}
}

// A full disk: the node stays as it is, and can be claimed when there is room.
func TestKeepFails(t *testing.T) {
	full := true
	c := newCard(t, func(cfg *claim.Config) {
		keep := cfg.Keep
		cfg.Keep = func(data []byte) error {
			if full {
				return errors.New("no space left on device")
			}
			return keep(data)
		}
	})
	fingerprint, code := c.screen()
	good := bundle(t, "home", time.Now())
	if err := client.Send(t.Context(), c.address, fingerprint, code, good); err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Send() = %v; want what went wrong", err)
	}
	full = false
	if err := client.Send(t.Context(), c.address, fingerprint, code, good); err != nil || !c.stored() {
		t.Errorf("Send() = %v; want it to succeed now", err)
	}
}

// Nothing else is there.
func TestOnlyClaiming(t *testing.T) {
	c := newCard(t)
	c.screen()
	for _, tt := range []struct {
		method, path string
		status       int
	}{{"GET", "/", 404}, {"GET", "/v1/status", 404}, {"PUT", api.ClaimPath, 405}, {"GET", api.ClaimPath, 200}} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, "https://"+c.address+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		got.Body.Close()
		if got.StatusCode != tt.status {
			t.Errorf("%s %s: status %d, want %d", tt.method, tt.path, got.StatusCode, tt.status)
		}
	}
	if _, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}}).DialContext(t.Context(), "tcp", c.address); err == nil {
		t.Error("TLS 1.2 is served; want 1.3 only")
	}
}
