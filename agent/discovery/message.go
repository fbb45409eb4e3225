package discovery

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"skerry.internal/skerry/agent/api"
)

// kind is a set of the records that a node has.
type kind int

const (
	addr  kind = 1 << iota // A and AAAA of the host
	srv                    // host and port of the instance
	txt                    // its announcement
	ptr                    // service to instance
	types                  // that there is such a service
	all   = addr | srv | txt | ptr
)

// life is how long others may keep a record.
type life int

const (
	ttlFull   life = iota
	ttlGone        // they shall forget it
	ttlLegacy      // for a resolver that knows nothing of mDNS: RFC 6762, 6.7
)

const (
	hostTTL   = 120  // seconds, of what depends on addresses
	otherTTL  = 4500 // of the rest
	legacyTTL = 10
	topBit    = 1 << 15 // of a class: the only owner, or in a question: answer to me alone
)

const (
	serviceName = api.ServiceType + ".local."
	typesName   = "_services._dns-sd._udp.local."
)

func (s *session) hostName() string { return s.host() + ".local." }
func (s *session) instance() string { return s.host() + "." + serviceName }

// records are those of kinds k as they are valid on a link.
func (s *session) records(index int, k kind, ttl life) []dnsmessage.Resource {
	var list []dnsmessage.Resource
	add := func(name string, shared bool, seconds uint32, body dnsmessage.ResourceBody) {
		n, err := dnsmessage.NewName(name)
		if err != nil {
			return
		}
		class := dnsmessage.ClassINET
		switch ttl {
		case ttlGone:
			seconds = 0
		case ttlLegacy:
			seconds = legacyTTL
		}
		if !shared && ttl != ttlLegacy {
			class |= topBit
		}
		list = append(list, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: n, Class: class, TTL: seconds}, Body: body})
	}
	// These are made of a checked host name, so they are short enough.
	host, instance, service := dnsmessage.MustNewName(s.hostName()), dnsmessage.MustNewName(s.instance()), dnsmessage.MustNewName(serviceName)
	if k&ptr != 0 {
		add(serviceName, true, otherTTL, &dnsmessage.PTRResource{PTR: instance})
	}
	if k&types != 0 {
		add(typesName, true, otherTTL, &dnsmessage.PTRResource{PTR: service})
	}
	if k&srv != 0 {
		add(s.instance(), false, hostTTL, &dnsmessage.SRVResource{Port: uint16(s.r.cfg.Port), Target: host})
	}
	if k&txt != 0 {
		add(s.instance(), false, otherTTL, &dnsmessage.TXTResource{TXT: s.r.announcement().TXT()})
	}
	if k&addr != 0 {
		for _, a := range s.links[index].addrs {
			if a.Addr().Is4() {
				add(s.hostName(), false, hostTTL, &dnsmessage.AResource{A: a.Addr().As4()})
			} else {
				add(s.hostName(), false, hostTTL, &dnsmessage.AAAAResource{AAAA: a.Addr().As16()})
			}
		}
	}
	return list
}

// multicast tells all on a link.
func (s *session) multicast(index int, k kind, ttl life) {
	m := dnsmessage.Message{Header: dnsmessage.Header{Response: true, Authoritative: true}, Answers: s.records(index, k, ttl)}
	if data, err := m.Pack(); err == nil {
		s.conn.multicast(index, s.links[index], data)
	}
	s.sent[sentKey{index, int(k)}] = time.Now()
}

// probe asks who has our names, and says what we are going to say.
func (s *session) probe(index int) {
	m := dnsmessage.Message{Authorities: s.records(index, addr|srv, ttlLegacy)}
	for i := range m.Authorities {
		m.Authorities[i].Header.TTL = hostTTL
	}
	for _, name := range []string{s.hostName(), s.instance()} {
		m.Questions = append(m.Questions, dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeALL, Class: dnsmessage.ClassINET | topBit})
	}
	if data, err := m.Pack(); err == nil {
		s.conn.multicast(index, s.links[index], data)
	}
}

// handle deals with whatever somebody on the network has sent.
func (s *session) handle(p packet) {
	l, ok := s.links[p.link]
	from := p.from.Addr().WithZone("")
	if !ok || !l.near(from) {
		return
	}
	var m dnsmessage.Message
	if m.Unpack(p.data) != nil || m.OpCode != 0 || m.RCode != 0 {
		return
	}
	switch own := s.own(from); {
	case !m.Response:
		if s.state == probing && !own {
			s.compare(p.link, m.Authorities)
		}
		if s.state >= announcing {
			s.answer(p, m)
		}
	case own || p.from.Port() != port || s.state == idle:
	case !s.contradicted(slices.Concat(m.Answers, m.Additionals)):
	case s.state == probing:
		s.taken()
	default:
		s.enter(probing, 0) // he who has it will say so again
	}
}

// near reports whether an address is on the link itself: nobody else may ask,
// or the node could be made to send to a victim.
func (l link) near(a netip.Addr) bool {
	return a.IsLinkLocalUnicast() || slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return p.Contains(a) })
}

// own reports whether an address is this node's: it hears itself, also on
// another interface of the same network.
func (s *session) own(a netip.Addr) bool {
	for _, l := range s.links {
		if slices.ContainsFunc(l.addrs, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return true
		}
	}
	return false
}

// contradicted reports whether records give one of our names to somebody else.
func (s *session) contradicted(list []dnsmessage.Resource) bool {
	for _, r := range list {
		if r.Header.TTL == 0 {
			continue // he has just let go
		}
		name := r.Header.Name.String()
		var same, host bool
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			same, host = s.own(netip.AddrFrom4(b.A)), true
		case *dnsmessage.AAAAResource:
			same, host = s.own(netip.AddrFrom16(b.AAAA)), true
		case *dnsmessage.SRVResource:
			same = strings.EqualFold(b.Target.String(), s.hostName()) && int(b.Port) == s.r.cfg.Port
		default:
			continue
		}
		if !same && (host && strings.EqualFold(name, s.hostName()) || !host && strings.EqualFold(name, s.instance())) {
			return true
		}
	}
	return false
}

// compare settles who gets a name that two ask for at once (RFC 6762, 8.2): the
// one whose addresses come later. The other asks again, and is told.
func (s *session) compare(index int, theirs []dnsmessage.Resource) {
	t := addresses(theirs, s.hostName())
	if len(t) == 0 {
		return
	}
	if slices.CompareFunc(addresses(s.records(index, addr, ttlFull), s.hostName()), t, bytes.Compare) < 0 {
		s.enter(probing, lostPause)
	}
}

// addresses of a name in the order in which they are compared.
func addresses(list []dnsmessage.Resource, name string) (raw [][]byte) {
	for _, r := range list {
		if !strings.EqualFold(r.Header.Name.String(), name) {
			continue
		}
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			raw = append(raw, append(binary.BigEndian.AppendUint16(nil, uint16(dnsmessage.TypeA)), b.A[:]...))
		case *dnsmessage.AAAAResource:
			raw = append(raw, append(binary.BigEndian.AppendUint16(nil, uint16(dnsmessage.TypeAAAA)), b.AAAA[:]...))
		}
	}
	sort.Slice(raw, func(i, j int) bool { return bytes.Compare(raw[i], raw[j]) < 0 })
	return raw
}

// answer answers the questions that are about us.
func (s *session) answer(p packet, m dnsmessage.Message) {
	legacy := p.from.Port() != port
	var answers, extra kind
	alone := true // all of the questions want the answer for themselves
	for _, q := range m.Questions {
		a, e := s.about(q)
		answers, extra = answers|a, extra|e
		alone = alone && (a == 0 || q.Class&topBit != 0)
	}
	if s.known(m.Answers) {
		answers &^= ptr
	}
	if answers == 0 {
		return
	}
	probe := len(m.Authorities) > 0
	if !legacy && !alone {
		k := answers | extra
		if last := s.sent[sentKey{p.link, int(k)}]; probe || time.Since(last) >= minRepeat {
			s.multicast(p.link, k, ttlFull)
		}
		return
	}
	r := dnsmessage.Message{Header: dnsmessage.Header{Response: true, Authoritative: true}}
	ttl := ttlFull
	if legacy {
		ttl, r.ID, r.Questions = ttlLegacy, m.ID, m.Questions
		for i := range r.Questions {
			r.Questions[i].Class &^= topBit
		}
	}
	r.Answers, r.Additionals = s.records(p.link, answers, ttl), s.records(p.link, extra&^answers, ttl)
	if data, err := r.Pack(); err == nil {
		s.conn.unicast(p.link, p.from, data)
	}
}

// about says which records answer a question, and which will be asked for next.
func (s *session) about(q dnsmessage.Question) (answers, extra kind) {
	if c := q.Class &^ topBit; c != dnsmessage.ClassINET && c != dnsmessage.ClassANY {
		return 0, 0
	}
	any := q.Type == dnsmessage.TypeALL
	switch name := strings.ToLower(q.Name.String()); {
	case name == s.hostName() && (any || q.Type == dnsmessage.TypeA || q.Type == dnsmessage.TypeAAAA):
		return addr, 0
	case name == s.instance() && any:
		return srv | txt, addr
	case name == s.instance() && q.Type == dnsmessage.TypeSRV:
		return srv, addr
	case name == s.instance() && q.Type == dnsmessage.TypeTXT:
		return txt, 0
	case name == serviceName && (any || q.Type == dnsmessage.TypePTR):
		return ptr, srv | txt | addr
	case name == typesName && (any || q.Type == dnsmessage.TypePTR):
		return types, 0
	}
	return 0, 0
}

// known reports whether who asks knows our service and will for a while.
func (s *session) known(list []dnsmessage.Resource) bool {
	return slices.ContainsFunc(list, func(r dnsmessage.Resource) bool {
		b, ok := r.Body.(*dnsmessage.PTRResource)
		return ok && r.Header.TTL >= otherTTL/2 && strings.EqualFold(r.Header.Name.String(), serviceName) && strings.EqualFold(b.PTR.String(), s.instance())
	})
}
