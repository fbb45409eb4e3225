// Package status is the API by which a node says how it is, and by which an
// administrator restarts or empties it: HTTP/1.1 with JSON over mutual TLS 1.3,
// served by init, so that it answers while everything above init is dead.
//
// Whoever holds a client certificate that the cluster's root vouches for may
// read the status; the rest is for members of system:masters. The node issues
// its own certificate, in memory, whenever names, addresses or the clock ask
// for another.
//
// Left out: finding out what is served, which package boot hands over;
// revocation of certificates.
package status

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"

	"golang.org/x/net/netutil"

	"skerry.internal/skerry/agent/api"
	"skerry.internal/skerry/agent/pki"
)

// Config says what is served, to whom, and by whom.
type Config struct {
	// Root is the cluster's root: it vouches for clients.
	Root *x509.Certificate
	// Authority issues the node's own certificate.
	Authority *pki.Authority
	// Names returns the node's names, the hostname first, and all its addresses as
	// they are now.
	Names func() (names []string, addresses []net.IP)
	// Now is the best guess at the time; certificates are judged by it.
	Now func() time.Time

	Status func() api.Status
	Units  []string // whose logs there are
	// UnitLog writes a unit's log, as supervise.Supervisor.WriteLog does.
	UnitLog func(ctx context.Context, w io.Writer, unit string, lines int, follow bool) error
	// Configuration is the file whose text goes into a support bundle,
	// without its secrets.
	Configuration string
	// Reboot and Reset ask for what they say and return before it happens.
	Reboot func(off bool) error
	Reset  func() error
	// Extra are further routes, patterns as http.ServeMux has them, for
	// administrators only. They have an hour for a request.
	Extra map[string]http.Handler

	Printf, Errorf func(format string, args ...any)
}

// Limits, so that nobody can make init grow or wait.
const (
	maxConnections = 32
	headerTime     = 10 * time.Second // TLS handshake included
	requestTime    = 30 * time.Second // without progress
	extraTime      = time.Hour
	idleTime       = time.Minute
	maxHeader      = 16 << 10
	maxBody        = 4 << 10
	maxLines       = 1_000_000
	defaultLines   = 100
)

// Admins is the organization of administrators' certificates.
const Admins = "system:masters"

const kernelLog = "kernel"

// Server serves the API.
type Server struct {
	cfg  Config
	cert certificate
	http http.Server
}

// New returns a server; Serve makes it work.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.handleStatus)
	for pattern, h := range map[string]http.HandlerFunc{
		"GET /v1/logs/{name}": s.handleLogs,
		"GET /v1/support":     s.handleSupport,
		"POST /v1/reboot":     s.handleReboot,
		"POST /v1/reset":      s.handleReset,
	} {
		mux.Handle(pattern, admin(h))
	}
	for pattern, h := range cfg.Extra {
		mux.Handle(pattern, admin(patient(h)))
	}
	s.http = http.Server{
		Handler: s.guarded(mux), ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader,
		ErrorLog: log.New(io.Discard, "", 0), // of who knocks without a certificate, there is no end
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert, VerifyConnection: s.verify,
			SessionTicketsDisabled: true, NextProtos: []string{"http/1.1"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.cert.get(cfg) },
		},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // no HTTP/2
	}
	return s
}

// Serve serves on l until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { s.http.Close() })
	defer stop()
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	if err := s.http.ServeTLS(netutil.LimitListener(l, maxConnections), "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve status API: %w", err)
	}
	return nil
}

// verify lets in whom the cluster's root vouches for.
//
// The node's clock may be behind by as long as it was off. That a certificate
// of the cluster exists proves that the time from which it is valid has come,
// so that time counts too: an administrator with a new certificate gets in.
func (s *Server) verify(c tls.ConnectionState) error {
	at := s.cfg.Now()
	roots, chain := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(s.cfg.Root)
	for i, cert := range c.PeerCertificates {
		if i > 0 {
			chain.AddCert(cert)
		}
		if cert.NotBefore.After(at) {
			at = cert.NotBefore
		}
	}
	_, err := c.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: chain, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

// guarded sets the limits of a request and survives a panic.
func (s *Server) guarded(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			if p == http.ErrAbortHandler {
				panic(p) // net/http's own way to cut an answer
			}
			if p != nil {
				s.cfg.Errorf("status API: %s %s: panic: %v", r.Method, r.URL.Path, p)
				fail(w, http.StatusInternalServerError, "the node's init has made a mistake: %v", p)
			}
		}()
		c := http.NewResponseController(w)
		c.SetReadDeadline(time.Now().Add(requestTime))
		c.SetWriteDeadline(time.Now().Add(requestTime))
		h.ServeHTTP(w, r)
	})
}

// admin lets administrators through.
func admin(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if who := r.TLS.PeerCertificates[0].Subject; !slices.Contains(who.Organization, Admins) {
			fail(w, http.StatusForbidden, "%s %s is for administrators; the certificate of %q is none of %s", r.Method, r.URL.Path, who.CommonName, Admins)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// patient gives a request more time.
func patient(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		c.SetReadDeadline(time.Now().Add(extraTime))
		c.SetWriteDeadline(time.Now().Add(extraTime))
		h.ServeHTTP(w, r)
	})
}

func (s *Server) handleStatus(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, s.cfg.Status())
}

func (s *Server) handleLogs(w http.ResponseWriter, r *http.Request) {
	name, lines, follow := r.PathValue("name"), defaultLines, false
	var err error
	if q := r.URL.Query().Get("lines"); q != "" {
		if lines, err = strconv.Atoi(q); err != nil || lines < 0 || lines > maxLines {
			fail(w, http.StatusBadRequest, "lines=%s: want a number from 0 to %d", q, maxLines)
			return
		}
	}
	if q := r.URL.Query().Get("follow"); q != "" {
		if follow, err = strconv.ParseBool(q); err != nil {
			fail(w, http.StatusBadRequest, "follow=%s: want true or false", q)
			return
		}
	}
	if name != kernelLog && !slices.Contains(s.cfg.Units, name) {
		fail(w, http.StatusNotFound, "no log %q: want one of %q", name, append([]string{kernelLog}, s.cfg.Units...))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := newStream(w, follow)
	if follow {
		out.c.Flush() // the log may be empty for long
	}
	if err := s.writeLog(r.Context(), out, name, lines, follow); err != nil && !out.begun {
		fail(w, http.StatusInternalServerError, "%v", err)
	}
}

func (s *Server) writeLog(ctx context.Context, w io.Writer, name string, lines int, follow bool) error {
	if name == kernelLog {
		return writeKernelLog(ctx, w, lines, follow)
	}
	return s.cfg.UnitLog(ctx, w, name, lines, follow)
}

func (s *Server) handleSupport(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/gzip")
	if err := s.writeSupport(r.Context(), newStream(w, false)); err != nil {
		s.cfg.Errorf("status API: write support bundle: %v", err)
		panic(http.ErrAbortHandler) // a cut answer must not look like a whole one
	}
}

func (s *Server) handleReboot(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Mode string `json:"mode"`
	}
	if !read(w, r, &body) {
		return
	}
	if body.Mode != "reboot" && body.Mode != "poweroff" {
		fail(w, http.StatusBadRequest, "mode %q: want reboot or poweroff", body.Mode)
		return
	}
	s.cfg.Printf("%s asked for by %q through the status API", body.Mode, r.TLS.PeerCertificates[0].Subject.CommonName)
	s.accept(w, s.cfg.Reboot(body.Mode == "poweroff"))
}

func (s *Server) handleReset(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Confirm string `json:"confirm"`
	}
	if !read(w, r, &body) {
		return
	}
	if names, _ := s.cfg.Names(); body.Confirm != names[0] || names[0] == "" {
		fail(w, http.StatusBadRequest, "confirm %q: want the node's name, which is %q", body.Confirm, names[0])
		return
	}
	s.cfg.Printf("factory reset asked for by %q through the status API", r.TLS.PeerCertificates[0].Subject.CommonName)
	s.accept(w, s.cfg.Reset())
}

func (s *Server) accept(w http.ResponseWriter, err error) {
	if err != nil {
		fail(w, http.StatusInternalServerError, "%v", err)
		return
	}
	answer(w, http.StatusAccepted, struct{}{})
}

// read reads a JSON body and answers itself when there is none.
func read(w http.ResponseWriter, r *http.Request, into any) bool {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		fail(w, http.StatusBadRequest, "read the request's JSON: %v", err)
		return false
	}
	return true
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, code int, format string, args ...any) {
	answer(w, code, api.Error{Error: fmt.Sprintf(format, args...)})
}

// stream is an answer of unknown length: each write has its own deadline, so
// that a long answer may take long and one that nobody reads does not stay.
type stream struct {
	w     io.Writer
	c     *http.ResponseController
	flush bool
	begun bool
}

func newStream(w http.ResponseWriter, flush bool) *stream {
	s := &stream{w: w, c: http.NewResponseController(w), flush: flush}
	s.c.SetReadDeadline(time.Time{}) // else its end would count as the client's
	return s
}

func (s *stream) Write(p []byte) (int, error) {
	s.begun = true
	s.c.SetWriteDeadline(time.Now().Add(requestTime))
	n, err := s.w.Write(p)
	if err == nil && s.flush {
		err = s.c.Flush()
	}
	return n, err
}
