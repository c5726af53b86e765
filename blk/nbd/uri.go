package nbd

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// ErrURI is wrapped by every refusal of a URI.
var ErrURI = errors.New("bad NBD URI")

// defaultPort is the one IANA gave NBD.
const defaultPort = "10809"

// address is where an export is, as a URI names it.
type address struct {
	network string // of net.Dial: tcp or unix
	address string
	host    string // what a certificate is for
	export  string
	secure  bool // TLS must be
}

// CheckURI tells what is wrong with a URI, whoever may answer there; the error wraps ErrURI.
func CheckURI(uri string) error {
	_, err := parseURI(uri)
	return err
}

// parseURI takes the URIs of the protocol's document uri.md apart:
//
//	nbd://host[:port]/export            nbds://...        with TLS
//	nbd+unix:///export?socket=/path     nbds+unix://...   the same
//
// with tls-hostname, and tls-type=x509, which is the only one there is here.
func parseURI(s string) (a address, err error) {
	u, err := url.Parse(s)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err
		}
		return a, fmt.Errorf("%w %q: %w", ErrURI, s, err)
	}
	bad := func(format string, args ...any) (address, error) {
		return address{}, fmt.Errorf("%w %q: %s", ErrURI, s, fmt.Sprintf(format, args...))
	}
	unix := false
	switch u.Scheme {
	case "nbd":
	case "nbds":
		a.secure = true
	case "nbd+unix":
		unix = true
	case "nbds+unix":
		unix, a.secure = true, true
	default:
		return bad("the scheme is %q, and not one of nbd, nbds, nbd+unix, nbds+unix", u.Scheme)
	}
	if u.Opaque != "" {
		return bad("// is missing behind the scheme")
	}
	if u.User != nil {
		return bad("a user means nothing here; name a client certificate instead")
	}
	if u.Fragment != "" || u.RawFragment != "" {
		return bad("# begins a fragment, which names nothing here; write %%23 for a # in the name of the export")
	}
	a.export = strings.TrimPrefix(u.Path, "/")
	if len(a.export) > maxString || strings.ContainsRune(a.export, 0) {
		return bad("the name of an export has at most %d bytes, and none of them is zero: choose another", maxString)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return bad("%v", err)
	}
	for key, values := range query {
		if len(values) != 1 {
			return bad("%s is given %d times: give it once", key, len(values))
		}
		switch value := values[0]; {
		case key == "socket" && unix:
			a.network, a.address = "unix", value
		case key == "tls-hostname" && value != "":
			a.host = value
		case key == "tls-type" && value == "x509":
		case key == "tls-type":
			return bad("tls-type is %q, and only x509 is possible: write that, or remove it", value)
		case key == "tls-verify-peer" && value == "1":
		default:
			return bad("%s=%s is not understood: the keys are socket, tls-hostname, tls-type and tls-verify-peer", key, value)
		}
	}
	if unix {
		switch {
		case a.address == "":
			return bad("%s needs ?socket=/path/of/the/socket", u.Scheme)
		case u.Host != "":
			return bad("%s has no host; write %s:///export?socket=...", u.Scheme, u.Scheme)
		case len(a.address) > 107:
			return bad("the path of a socket has at most 107 bytes: choose a shorter one")
		}
		return a, nil
	}
	host, port := u.Hostname(), u.Port()
	if host == "" {
		return bad("the host is missing: write %s://host:port/export", u.Scheme)
	}
	if port == "" {
		port = defaultPort
	}
	if a.host == "" {
		a.host = host
	}
	a.network, a.address = "tcp", net.JoinHostPort(host, port)
	return a, nil
}
