package gossip

import (
	"net/netip"
	"testing"
)

func TestWithoutARouteAnAddressThatOthersMayReachIsChosen(t *testing.T) {
	for _, test := range []struct {
		name string
		have []string
		want string
	}{
		{"only loopback", []string{"127.0.0.1", "::1"}, ""},
		{"only link-local", []string{"127.0.0.1", "fe80::1", "169.254.3.4"}, ""},
		{"a private network", []string{"127.0.0.1", "fe80::1", "10.77.0.1", "10.78.0.1"}, "10.77.0.1"},
		{"IPv6 first", []string{"::1", "2001:db8::2", "10.77.0.1"}, "10.77.0.1"},
		{"IPv6 only", []string{"::1", "fe80::1", "2001:db8::2"}, "2001:db8::2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var have []netip.Addr
			for _, a := range test.have {
				have = append(have, netip.MustParseAddr(a))
			}
			got, ok := anyOf(have)
			if ok != (test.want != "") || ok && got.String() != test.want {
				t.Errorf("got %v, %v, want %q", got, ok, test.want)
			}
		})
	}
}
