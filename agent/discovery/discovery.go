// Package discovery announces a node on its network by multicast DNS (RFC 6762)
// and DNS-SD (RFC 6763): NAME.local, and the service _skerry._tcp.
//
// Before it uses a name it asks three times whether somebody else has it. If so
// it takes NAME-2, NAME-3 and so on, and says so; it never fights. After every
// change of addresses or interfaces it asks again, beginning with its own name.
//
// Left out: asking (imagebuild/discover); resolving other hosts' .local names;
// NSEC records, so a resolver that wants the one kind of address there is none
// of waits until its own time is over; remembering a second name over a reboot.
package discovery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"skerry.internal/skerry/agent/api"
)

// Config says what is announced, and where.
type Config struct {
	Host string // the name to have, one label
	Port int    // of the service
	// Use picks the interfaces by name.
	Use func(name string) bool
	// Named is told of each name that is put to use, without .local; may be nil.
	Named          func(name string)
	Printf, Errorf func(format string, args ...any)
}

// Responder answers for one node.
type Responder struct {
	cfg  Config
	wake chan struct{} // capacity 1: the announcement is another

	mu      sync.Mutex // guards all that follows
	told    api.Announcement
	name    string // in use, empty while there is none
	problem string
}

// New returns a responder; Run makes it work.
func New(cfg Config, a api.Announcement) *Responder {
	return &Responder{cfg: cfg, told: a, wake: make(chan struct{}, 1)}
}

// Set changes what is announced.
func (r *Responder) Set(a api.Announcement) {
	r.mu.Lock()
	r.told = a
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Name is the name in use, without .local; empty while there is none.
func (r *Responder) Name() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.name
}

// Problem says that another node has this one's name; empty if none has.
func (r *Responder) Problem() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.problem
}

func (r *Responder) announcement() api.Announcement {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.told
}

// pause before a responder that could not work tries again.
const pause = 10 * time.Second

// Run answers until ctx ends, and then says goodbye.
func (r *Responder) Run(ctx context.Context) {
	said := ""
	for {
		err := safely(func() error { return r.serve(ctx) })
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != said { // once, not every ten seconds for years
			r.cfg.Errorf("discovery: %v; trying again", err)
			said = text
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// safely turns a panic into an error: in init it would be the end of the node.
func safely(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return f()
}

// state of the name. A change of addresses leads back to announcing, a new
// interface to probing:
//
//	idle ── plugged in ──▶ probing ── three times no answer ──▶ announcing ── twice ──▶ established
//	                       ▲  │ somebody has it: next name          │                       │
//	                       └──┴────────── somebody else says he has it ◀───────────────────┘
type state int

const (
	idle state = iota
	probing
	announcing
	established
)

// Times of RFC 6762: 8.1, 8.2, 8.3, 6.
const (
	probeGap    = 250 * time.Millisecond
	probes      = 3
	announceGap = time.Second
	announces   = 2
	lostPause   = time.Second     // after a simultaneous probe that another has won
	manyPause   = 5 * time.Second // between names when many were taken
	many        = 10
	minRepeat   = time.Second // between two multicasts of one record
	settle      = 300 * time.Millisecond
)

// session is one life of the sockets. One goroutine owns it.
type session struct {
	r     *Responder
	conn  *conn
	links map[int]link // by interface index
	state state
	count int // of probes or announcements sent
	tries int // names tried since the last change
	timer *time.Timer
	sent  map[sentKey]time.Time
}

type sentKey struct {
	link int
	kind int
}

// link is an interface that is answered on.
type link struct {
	name  string
	addrs []netip.Prefix // sorted
}

func (r *Responder) serve(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed, err := watch(ctx)
	if err != nil {
		return err
	}
	c, err := listen()
	if err != nil {
		return err
	}
	s := &session{r: r, conn: c, timer: time.NewTimer(0), sent: map[sentKey]time.Time{}}
	packets, broken := make(chan packet), make(chan error, 2)
	var readers sync.WaitGroup
	c.read(ctx, &readers, packets, broken)
	defer func() { cancel(); c.close(); readers.Wait() }()
	defer s.timer.Stop()
	defer r.setName("", "")
	if err := s.refresh(); err != nil {
		return err
	}
	var settled <-chan time.Time // nil: no change is waited for
	for {
		select {
		case <-ctx.Done():
			s.goodbye()
			return nil
		case err := <-broken:
			return err
		case _, ok := <-changed:
			if !ok {
				return errors.New("watch addresses: the subscription ended")
			}
			if settled == nil { // more changes come at once; a node has many, of its pods
				settled = time.After(settle)
			}
		case <-settled:
			settled = nil
			if err := s.refresh(); err != nil {
				settled = time.After(pause)
			}
		case <-r.wake:
			if s.state >= announcing {
				s.enter(announcing, 0)
			}
		case <-s.timer.C:
			s.turn()
		case p := <-packets:
			s.handle(p)
		}
	}
}

// watch receives after a change of links or addresses. It ends with ctx.
func watch(ctx context.Context) (<-chan struct{}, error) {
	links, addrs := make(chan netlink.LinkUpdate, 16), make(chan netlink.AddrUpdate, 16)
	if err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: func(error) {}}); err != nil {
		return nil, fmt.Errorf("watch links: %w", err)
	}
	if err := netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: func(error) {}}); err != nil {
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	changed := make(chan struct{}, 1)
	go func() {
		defer func() { // both, or the library's goroutines wait for ever
			go drain(links)
			drain(addrs)
		}()
		defer close(changed)
		for ok := true; ok; {
			select {
			case _, ok = <-links:
			case _, ok = <-addrs:
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}

func drain[T any](ch <-chan T) {
	for range ch {
	}
}

// refresh looks at the interfaces again.
func (s *session) refresh() error {
	now, err := usable(s.r.cfg.Use)
	if err != nil {
		return err
	}
	same, plugged := len(now) == len(s.links), false
	for i, l := range now {
		old, had := s.links[i]
		plugged = plugged || !had
		same = same && had && old.name == l.name && slices.Equal(old.addrs, l.addrs)
	}
	if same {
		return nil
	}
	s.conn.join(s.links, now, s.r.cfg.Errorf)
	s.links = now
	clear(s.sent)
	if len(now) == 0 {
		s.enter(idle, 0)
		return nil
	}
	if !plugged && s.tries == 0 && s.state >= announcing {
		// The name stays ours meanwhile: who asks for it must hear so.
		s.enter(announcing, 0)
		return nil
	}
	s.tries = 0
	s.enter(probing, time.Duration(rand.Int64N(int64(probeGap))))
	return nil
}

// usable lists the interfaces that are up, can multicast and have an address. An
// address that the kernel still checks for another owner cannot be sent from.
func usable(use func(string) bool) (map[int]link, error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	const flags = unix.IFF_UP | unix.IFF_RUNNING | unix.IFF_MULTICAST
	links := map[int]link{}
	for _, i := range all {
		a := i.Attrs()
		if a.RawFlags&flags != flags || !use(a.Name) {
			continue
		}
		l := link{name: a.Name}
		for _, addr := range addrs {
			ip, ok := netip.AddrFromSlice(addr.IP)
			if ok && addr.LinkIndex == a.Index && addr.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
				ones, _ := addr.Mask.Size()
				l.addrs = append(l.addrs, netip.PrefixFrom(ip.Unmap(), ones))
			}
		}
		sort.Slice(l.addrs, func(i, j int) bool { return l.addrs[i].Compare(l.addrs[j]) < 0 })
		if len(l.addrs) > 0 {
			links[a.Index] = l
		}
	}
	return links, nil
}

// enter goes to another state and has its first packet sent after a while.
func (s *session) enter(to state, after time.Duration) {
	s.state, s.count = to, 0
	if to == idle {
		s.timer.Stop()
		s.r.setName("", "")
		return
	}
	s.timer.Reset(after)
}

// turn sends what is due.
func (s *session) turn() {
	switch s.state {
	case probing:
		if s.count < probes {
			s.each(s.probe)
			s.count++
			s.timer.Reset(probeGap)
			return
		}
		s.claimName()
		s.enter(announcing, 0)
	case announcing:
		s.each(func(i int) { s.multicast(i, all, ttlFull) })
		if s.count++; s.count < announces {
			s.timer.Reset(announceGap)
			return
		}
		s.state = established
	}
}

func (s *session) each(f func(link int)) {
	for i := range s.links {
		f(i)
	}
}

// host is the name of the session, without .local.
func (s *session) host() string {
	if s.tries == 0 {
		return s.r.cfg.Host
	}
	suffix := fmt.Sprintf("-%d", s.tries+1)
	return s.r.cfg.Host[:min(len(s.r.cfg.Host), 63-len(suffix))] + suffix
}

// claimName puts the name to use and says if it is not the node's own.
func (s *session) claimName() {
	if named := s.r.cfg.Named; named != nil {
		named(s.host())
	}
	if s.tries == 0 {
		s.r.setName(s.host(), "")
		return
	}
	problem := fmt.Sprintf("another node here has the name %s; this one answers to %s.local. Give one of them another hostname in skerry.yaml", s.r.cfg.Host, s.host())
	if s.r.Problem() != problem {
		s.r.cfg.Errorf("discovery: %s", problem)
	}
	s.r.setName(s.host(), problem)
}

func (r *Responder) setName(name, problem string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.name, r.problem = name, problem
}

// taken gives the name up for the next one.
func (s *session) taken() {
	s.tries++
	wait := time.Duration(rand.Int64N(int64(probeGap)))
	if s.tries > many {
		wait = manyPause
	}
	s.enter(probing, wait)
}

// goodbye tells the others to forget.
func (s *session) goodbye() {
	if s.state >= announcing {
		s.each(func(i int) { s.multicast(i, all, ttlGone) })
	}
}
