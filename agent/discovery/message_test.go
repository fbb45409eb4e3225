package discovery

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"skerry.internal/skerry/agent/api"
)

// quiet is an established session whose packets go nowhere; what it would have
// sent to all is in sent.
func quiet() *session {
	r := New(Config{Host: "barn", Port: api.Port, Printf: func(string, ...any) {}, Errorf: func(string, ...any) {}}, api.Announcement{ID: "aa"})
	return &session{r: r, conn: &conn{}, state: established, timer: time.NewTimer(time.Hour), sent: map[sentKey]time.Time{},
		links: map[int]link{2: {name: "eth0", addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24")}}}}
}

func ask(name string, t dnsmessage.Type) []dnsmessage.Question {
	return []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: t, Class: dnsmessage.ClassINET}}
}

func record(name string, ttl uint32, body dnsmessage.ResourceBody) []dnsmessage.Resource {
	return []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}, Body: body}}
}

func TestHandle(t *testing.T) {
	response := dnsmessage.Header{Response: true}
	theirs := &dnsmessage.AResource{A: [4]byte{10, 9, 0, 2}}
	ours := &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName("barn." + serviceName)}
	for _, tt := range []struct {
		name    string
		from    string // port 5353 on the link, if empty
		link    int    // 2, if 0
		state   state
		message dnsmessage.Message
		want    state
		tries   int
		answers bool
	}{
		{name: "a question for the service", state: established, message: dnsmessage.Message{Questions: ask(serviceName, dnsmessage.TypePTR)}, want: established, answers: true},
		{name: "for the name, in capitals", state: established, message: dnsmessage.Message{Questions: ask("BARN.local.", dnsmessage.TypeA)}, want: established, answers: true},
		{name: "for which services there are", state: announcing, message: dnsmessage.Message{Questions: ask(typesName, dnsmessage.TypePTR)}, want: announcing, answers: true},
		{name: "for another name", state: established, message: dnsmessage.Message{Questions: ask("mast.local.", dnsmessage.TypeA)}, want: established},
		{name: "before the name is ours", state: probing, message: dnsmessage.Message{Questions: ask("barn.local.", dnsmessage.TypeA)}, want: probing},
		{name: "from elsewhere", from: "192.0.2.1:5353", state: established, message: dnsmessage.Message{Questions: ask(serviceName, dnsmessage.TypePTR)}, want: established},
		{name: "on a pod's interface", link: 7, state: established, message: dnsmessage.Message{Questions: ask(serviceName, dnsmessage.TypePTR)}, want: established},
		{name: "by who knows the answer", state: established, want: established,
			message: dnsmessage.Message{Questions: ask(serviceName, dnsmessage.TypePTR), Answers: record(serviceName, otherTTL, ours)}},
		{name: "by who is about to forget it", state: established, want: established, answers: true,
			message: dnsmessage.Message{Questions: ask(serviceName, dnsmessage.TypePTR), Answers: record(serviceName, otherTTL/2-1, ours)}},

		{name: "somebody has the name", state: probing, message: dnsmessage.Message{Header: response, Answers: record("barn.local.", 120, theirs)}, want: probing, tries: 1},
		{name: "somebody says so later", state: established, message: dnsmessage.Message{Header: response, Answers: record("barn.local.", 120, theirs)}, want: probing},
		{name: "he lets go", state: probing, message: dnsmessage.Message{Header: response, Answers: record("barn.local.", 0, theirs)}, want: probing},
		{name: "not from the port of mDNS", from: "10.9.0.2:4000", state: probing, message: dnsmessage.Message{Header: response, Answers: record("barn.local.", 120, theirs)}, want: probing},
		{name: "our own echo", from: "10.9.0.1:5353", state: probing, message: dnsmessage.Message{Header: response, Answers: record("barn.local.", 120, theirs)}, want: probing},
		{name: "what we say ourselves", state: established, message: dnsmessage.Message{Header: response, Answers: record("barn.local.", 120, &dnsmessage.AResource{A: [4]byte{10, 9, 0, 1}})}, want: established},
		{name: "another's name", state: established, message: dnsmessage.Message{Header: response, Answers: record("mast.local.", 120, theirs)}, want: established},
	} {
		s := quiet()
		s.state = tt.state
		data, err := tt.message.Pack()
		if err != nil {
			t.Fatal(err)
		}
		p := packet{data, netip.MustParseAddrPort("10.9.0.2:5353"), 2}
		if tt.from != "" {
			p.from = netip.MustParseAddrPort(tt.from)
		}
		if tt.link != 0 {
			p.link = tt.link
		}
		s.handle(p)
		if s.state != tt.want || s.tries != tt.tries || len(s.sent) > 0 != tt.answers {
			t.Errorf("%s: state %d, tries %d, %d packets; want %d, %d, an answer %v", tt.name, s.state, s.tries, len(s.sent), tt.want, tt.tries, tt.answers)
		}
	}
}

// Of two that ask at once, exactly one gives way.
func TestCompare(t *testing.T) {
	for other, want := range map[[4]byte]int{{10, 9, 0, 2}: 1, {10, 9, 0, 0}: 0, {10, 9, 0, 1}: 0} {
		s := quiet()
		s.state, s.count = probing, 2
		s.compare(2, record("barn.local.", 120, &dnsmessage.AResource{A: other}))
		if lost := s.count == 0; lost != (want == 1) {
			t.Errorf("compare with %v: gives way %v, want %v", other, lost, want == 1)
		}
	}
}

// One who asks all the time does not make the node talk all the time.
func TestRepeat(t *testing.T) {
	s := quiet()
	data, err := (&dnsmessage.Message{Questions: ask(serviceName, dnsmessage.TypePTR)}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	p := packet{data, netip.MustParseAddrPort("10.9.0.2:5353"), 2}
	s.handle(p)
	var first time.Time
	for _, first = range s.sent {
	}
	s.handle(p)
	for _, second := range s.sent {
		if first.IsZero() || !second.Equal(first) {
			t.Errorf("answered at %v and at %v; want once", first, second)
		}
	}
}

// Whatever strangers send, PID 1 lives.
func FuzzHandle(f *testing.F) {
	for _, m := range []dnsmessage.Message{
		{Questions: ask(serviceName, dnsmessage.TypePTR)},
		{Header: dnsmessage.Header{Response: true}, Answers: record("barn.local.", 120, &dnsmessage.AResource{A: [4]byte{10, 9, 0, 2}})},
		{Questions: ask("barn.local.", dnsmessage.TypeALL), Authorities: record("barn.local.", 120, &dnsmessage.AResource{A: [4]byte{10, 9, 0, 2}})},
	} {
		data, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, uint16(port), int(established))
		f.Add(data, uint16(4000), int(probing))
	}
	f.Fuzz(func(t *testing.T, data []byte, from uint16, st int) {
		s := quiet()
		s.state = state(uint(st) % (uint(established) + 1))
		s.handle(packet{data, netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), from), 2})
	})
}
