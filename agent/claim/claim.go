// Package claim takes a node without a cluster into one, over the network.
//
// The node makes a key pair, and shows on its console the fingerprint of it and
// a one-time code. Who claims it types both: the fingerprint proves the node to
// him before he sends anything, the code proves to the node that he stands
// before it. What he sends is a provisioning bundle, as on a card.
//
// A wrong code costs a pause that doubles; after five a new code is shown, and
// so it is after an hour. Whoever on the network tries codes on purpose can keep
// a node from being claimed, but not learn its code.
//
// Left out: asking (imagebuild/claim), keeping the bundle, and what starts then.
package claim

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/pki"
	"skerry.internal/skerry/agent/provision"
)

const (
	maxTries = 5
	maxPause = 30 * time.Second
	// maxBody is a bundle and what is around it.
	maxBody = provision.MaxSize + 4<<10
	// maxConns is what a node without swap can spare for strangers.
	maxConns = 16
	exchange = 30 * time.Second
)

// Config says who is claimed, and how.
type Config struct {
	Node api.Unclaimed
	// Keep stores the bundle durably. The node is claimed when it returns nil.
	Keep func(data []byte) error
	// Show tells the people at the console what to type, and again when
	// there is a new code.
	Show           func(fingerprint, code string)
	Printf, Errorf func(format string, args ...any)
	// CodeLife is the time after which there is a new code; 0 means an hour.
	CodeLife time.Duration
	// FirstPause is what the first wrong code costs; 0 means a second.
	FirstPause time.Duration
	Now        func() time.Time // nil: time.Now
}

// Server waits for a claim.
type Server struct {
	cfg         Config
	tls         tls.Certificate
	fingerprint string
	claimed     chan *provision.Bundle // capacity 1

	keeping sync.Mutex // held while a bundle is kept, taken before mu

	mu     sync.Mutex // guards all that follows
	code   string
	wrong  int // tries since the last new code
	pause  time.Duration
	closed time.Time // no try counts until then
	done   bool
}

// New makes a node's key pair and its first code.
func New(cfg Config) (*Server, error) {
	if cfg.CodeLife == 0 {
		cfg.CodeLife = time.Hour
	}
	if cfg.FirstPause == 0 {
		cfg.FirstPause = time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	// Nobody looks at its dates: neither side may know the time yet.
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cfg.Node.Name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), KeyUsage: x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make certificate: %w", err)
	}
	s := &Server{cfg: cfg, tls: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf},
		fingerprint: api.Fingerprint(leaf), claimed: make(chan *provision.Bundle, 1), pause: cfg.FirstPause}
	s.code = newCode()
	return s, nil
}

func newCode() string {
	var raw [8]byte
	rand.Read(raw[:])
	return api.NewCode(raw[:])
}

// Serve answers on l until somebody has claimed the node or ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) (*provision.Bundle, error) {
	web := &http.Server{
		Handler: s.handler(), ErrorLog: log.New(io.Discard, "", 0), // strangers' mistakes are not the console's
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: exchange, WriteTimeout: 2 * exchange, IdleTimeout: exchange, MaxHeaderBytes: 8 << 10,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.tls}, NextProtos: []string{"http/1.1"}},
	}
	ended := make(chan error, 1)
	go func() { ended <- web.ServeTLS(netutil.LimitListener(l, maxConns), "", "") }()
	s.cfg.Show(s.fingerprint, s.currentCode())
	renew := time.NewTicker(s.cfg.CodeLife)
	defer renew.Stop()
	for {
		select {
		case b := <-s.claimed:
			// The answer to the claim is still on its way.
			bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), exchange)
			defer cancel()
			web.Shutdown(bounded)
			web.Close()
			return b, nil
		case err := <-ended:
			return nil, fmt.Errorf("serve claims: %w", err)
		case <-ctx.Done():
			web.Close()
			return nil, ctx.Err()
		case <-renew.C:
			s.renew()
		}
	}
}

func (s *Server) currentCode() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.code
}

// renew shows a new code; the old one is worth nothing from now on.
func (s *Server) renew() {
	s.mu.Lock()
	s.code, s.wrong = newCode(), 0
	code, done := s.code, s.done
	s.mu.Unlock()
	if !done {
		s.cfg.Show(s.fingerprint, code)
	}
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+api.ClaimPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(s.cfg.Node)
	})
	mux.HandleFunc("POST "+api.ClaimPath, s.post)
	return mux
}

// refusal is an answer to a claim that did not succeed.
type refusal struct {
	status int
	text   string
	wait   time.Duration
}

func (r *refusal) Error() string { return r.text }

func (s *Server) post(w http.ResponseWriter, r *http.Request) {
	err := s.claim(http.MaxBytesReader(w, r.Body, maxBody), r.RemoteAddr)
	var no *refusal
	switch {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case errors.As(err, &no):
		if no.wait > 0 {
			w.Header().Set("Retry-After", fmt.Sprint(int(no.wait/time.Second)+1))
		}
		http.Error(w, no.text, no.status)
	default:
		s.cfg.Errorf("claim: %v", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// claim reads a request, and takes the node into the cluster if all is right.
func (s *Server) claim(body io.Reader, from string) error {
	// A stranger's megabytes are not read before his turn.
	if err := s.open(); err != nil {
		return err
	}
	data, err := io.ReadAll(body)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return &refusal{status: http.StatusRequestEntityTooLarge, text: fmt.Sprintf("the request is larger than %d bytes", maxBody)}
	case err != nil:
		return &refusal{status: http.StatusBadRequest, text: "the request was cut off"}
	}
	var request api.ClaimRequest
	if err := json.Unmarshal(data, &request); err != nil {
		return &refusal{status: http.StatusBadRequest, text: "the request is no claim: " + err.Error()}
	}
	s.keeping.Lock() // one at a time: the first right one wins
	defer s.keeping.Unlock()
	if err := s.check(request.Code, from); err != nil {
		return err
	}
	b, err := examine(request.Bundle, s.cfg.Now())
	if err != nil {
		return &refusal{status: http.StatusUnprocessableEntity, text: err.Error()}
	}
	if err := s.cfg.Keep(request.Bundle); err != nil {
		return err
	}
	s.mu.Lock()
	s.done = true
	s.mu.Unlock()
	s.cfg.Printf("claimed for cluster %s by %s", b.Cluster, from)
	s.claimed <- b
	return nil
}

// open refuses who comes too late or too soon.
func (s *Server) open() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openLocked()
}

func (s *Server) openLocked() error {
	if s.done {
		return &refusal{status: http.StatusConflict, text: "this node has just been claimed"}
	}
	if wait := time.Until(s.closed); wait > 0 {
		return &refusal{status: http.StatusTooManyRequests, text: "somebody has tried a wrong code; try again in a moment", wait: wait}
	}
	return nil
}

// check compares a code. A wrong one counts, whatever it looks like.
func (s *Server) check(code, from string) error {
	given, _ := api.ParseCode(code)
	s.mu.Lock()
	if err := s.openLocked(); err != nil {
		s.mu.Unlock()
		return err
	}
	if subtle.ConstantTimeCompare([]byte(given), []byte(s.code)) == 1 {
		s.mu.Unlock()
		return nil
	}
	s.wrong++
	last := s.wrong >= maxTries
	s.closed = time.Now().Add(s.pause)
	s.pause = min(2*s.pause, maxPause)
	s.mu.Unlock()
	s.cfg.Errorf("claim: %s has sent a wrong code", from)
	text := "wrong code"
	if last {
		s.renew()
		text = "wrong code, for the fifth time: the node shows a new one now"
	}
	return &refusal{status: http.StatusForbidden, text: text}
}

// examine checks a bundle as far as a node can before it has any use of it: a
// card with a wrong one is looked at by who wrote it, but here nobody is.
func examine(data []byte, now time.Time) (*provision.Bundle, error) {
	b, err := provision.Parse(data)
	if err != nil {
		return nil, err
	}
	root, err := pki.ParseCert(b.CACert)
	if err != nil {
		return nil, fmt.Errorf("check bundle: CA certificate: %w", err)
	}
	inter, err := pki.ParseAuthority(b.IntermediateCert, b.IntermediateKey)
	if err != nil {
		return nil, fmt.Errorf("check bundle: %w", err)
	}
	// A node that does not know the time yet believes the bundle.
	if now.Before(b.Created) {
		now = b.Created
	}
	roots := x509.NewCertPool()
	roots.AddCert(root)
	if _, err := inter.Cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return nil, fmt.Errorf("check bundle: at %s, the node's time: %w", now.UTC().Format(time.RFC3339), err)
	}
	return b, nil
}
