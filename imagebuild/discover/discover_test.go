package discover

import (
	"net/netip"
	"reflect"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"skerry.internal/skerry/agent/api"
)

func resource(name string, ttl uint32, body dnsmessage.ResourceBody) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}, Body: body}
}

// What answers say is a stranger's: it is cut to what can be printed.
func TestParse(t *testing.T) {
	from := netip.MustParseAddr("10.9.0.77")
	ptr := func(instance string, ttl uint32) dnsmessage.Resource {
		return resource(service, ttl, &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName(instance)})
	}
	full := []dnsmessage.Resource{
		resource("barn."+service, 10, &dnsmessage.SRVResource{Port: 7000, Target: dnsmessage.MustNewName("barn.local.")}),
		resource("BARN."+service, 10, &dnsmessage.TXTResource{TXT: []string{"cluster=ho\x1b[2Jme", "claimed=yes", "version=1", "role=server", "board=rpi4", "id=aa"}}),
		resource("barn.local.", 10, &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("fe80::1").As16()}),
		resource("barn.local.", 10, &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("2001:db8::1").As16()}),
		resource("barn.local.", 10, &dnsmessage.AResource{A: [4]byte{10, 9, 0, 1}}),
		resource("other.local.", 10, &dnsmessage.AResource{A: [4]byte{10, 9, 0, 2}}),
	}
	for _, tt := range []struct {
		name    string
		message dnsmessage.Message
		want    []Node
	}{
		{"full", dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Answers: []dnsmessage.Resource{ptr("barn."+service, 10)}, Additionals: full},
			[]Node{{Name: "barn", Addresses: []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fe80::1%eth0")},
				Port: 7000, Cluster: "ho[2Jme", Role: "server", Version: "1", Board: "rpi4", Claimed: true, ID: "aa"}}},
		{"bare", dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Answers: []dnsmessage.Resource{ptr("barn."+service, 10)}},
			[]Node{{Name: "barn", Addresses: []netip.Addr{from}, Port: api.Port}}},
		{"goodbye", dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Answers: []dnsmessage.Resource{ptr("barn."+service, 0)}, Additionals: full}, nil},
		{"a question", dnsmessage.Message{Answers: []dnsmessage.Resource{ptr("barn."+service, 10)}}, nil},
		{"another service", dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Answers: []dnsmessage.Resource{
			resource("_http._tcp.local.", 10, &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName("x._http._tcp.local.")})}}, nil},
	} {
		data, err := tt.message.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if got := Parse(data, "eth0", from); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: Parse() = %+v; want %+v", tt.name, got, tt.want)
		}
	}
	if got := Parse([]byte("garbage"), "eth0", from); got != nil {
		t.Errorf("Parse() of garbage = %+v; want nothing", got)
	}
}

func FuzzParse(f *testing.F) {
	data, err := (&dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Answers: []dnsmessage.Resource{
		resource(service, 10, &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName("barn." + service)})}}).Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, n := range Parse(data, "eth0", netip.MustParseAddr("10.9.0.77")) {
			if len(n.Addresses) == 0 || n.Port == 0 {
				t.Errorf("Parse() = %+v; want an address and a port", n)
			}
		}
	})
}
