package nbd

import (
	"errors"
	"strings"
	"testing"
)

func TestURI(t *testing.T) {
	for _, c := range []struct {
		uri  string
		want address
	}{
		{"nbd://example.com/disk", address{"tcp", "example.com:10809", "example.com", "disk", false}},
		{"nbd://example.com:1234", address{"tcp", "example.com:1234", "example.com", "", false}},
		{"nbd://example.com/", address{"tcp", "example.com:10809", "example.com", "", false}},
		{"nbd://example.com//disk", address{"tcp", "example.com:10809", "example.com", "/disk", false}},
		{"nbd://example.com/hello%20world%2f%23", address{"tcp", "example.com:10809", "example.com", "hello world/#", false}},
		{"nbds://[2001:db8::1]:99/a?tls-hostname=b", address{"tcp", "[2001:db8::1]:99", "b", "a", true}},
		{"nbds://h/a?tls-type=x509&tls-verify-peer=1", address{"tcp", "h:10809", "h", "a", true}},
		{"nbd+unix:///disk?socket=/run/s", address{"unix", "/run/s", "", "disk", false}},
		{"nbds+unix:///?socket=%00abstract&tls-hostname=h", address{"unix", "\x00abstract", "h", "", true}},
	} {
		if got, err := parseURI(c.uri); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", c.uri, got, err)
		}
	}
	for uri, want := range map[string]string{
		"":                                     "the scheme is",
		"disk":                                 "the scheme is",
		"http://h/disk":                        `the scheme is "http"`,
		"nbd:disk":                             "// is missing",
		"nbd:///disk":                          "the host is missing",
		"nbd://h:port/disk":                    "invalid port",
		"nbd://me@h/disk":                      "a user means nothing",
		"nbd://h/disk#2":                       "fragment",
		"nbd://h/disk?socket=/run/s":           "socket=/run/s is not understood",
		"nbd://h/disk?cache=none":              "cache=none is not understood",
		"nbds://h/disk?tls-type=psk":           "only x509",
		"nbds://h/disk?tls-verify-peer=0":      "tls-verify-peer=0 is not understood",
		"nbd+unix:///disk":                     "needs ?socket=",
		"nbd+unix://h/disk?socket=/s":          "has no host",
		"nbd+unix:///?socket=/a&socket=/b":     "is given 2 times",
		"nbd+unix:///%00?socket=/a":            "none of them is zero",
		"nbd://h/" + strings.Repeat("x", 5000): "at most 4096",
		"nbd+unix:///?socket=/" + strings.Repeat("x", 120): "at most 107",
		"nbd://h/%zz": "invalid URL escape",
	} {
		_, err := parseURI(uri)
		switch {
		case !errors.Is(err, ErrURI):
			t.Errorf("%.60q: %v", uri, err)
		case !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n"):
			t.Errorf("%.60q: %v, which has no %q", uri, err, want)
		}
	}
}

func FuzzURI(f *testing.F) {
	for _, s := range []string{"nbd://h/e", "nbds://[::1]:1/e?tls-hostname=x", "nbd+unix:///e?socket=/s", "nbd://%zz", "nbd://h/%00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseURI(s)
		if err == nil && (a.address == "" || len(a.export) > maxString || strings.ContainsRune(a.export, 0)) {
			t.Errorf("%q is taken as %+v", s, a)
		}
	})
}
