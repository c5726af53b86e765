package nbd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificates are an authority and what it has signed, in files with the names that GnuTLS's servers want.
type certificates struct{ dir string }

func (c certificates) file(name string) string { return filepath.Join(c.dir, name) }

func newCertificates(t *testing.T) certificates {
	t.Helper()
	c := certificates{t.TempDir()}
	key, root := c.make(t, "ca", nil, nil, func(x *x509.Certificate) {
		x.IsCA, x.BasicConstraintsValid, x.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	c.make(t, "server", root, key, func(x *x509.Certificate) {
		x.DNSNames, x.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
		x.ExtKeyUsage, x.KeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, x509.KeyUsageDigitalSignature
	})
	c.make(t, "client", root, key, func(x *x509.Certificate) {
		x.ExtKeyUsage, x.KeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, x509.KeyUsageDigitalSignature
	})
	der, err := asn1.Marshal(struct{ P, G *big.Int }{ffdhe2048(), big.NewInt(2)})
	if err == nil {
		err = os.WriteFile(c.file("dh-params.pem"), pem.EncodeToMemory(&pem.Block{Type: "DH PARAMETERS", Bytes: der}), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ffdhe2048 is the prime of a Diffie-Hellman group (RFC 7919, A.1). QEMU looks for one of its own where it is given none, which takes it half a minute at times.
func ffdhe2048() *big.Int {
	one := big.NewInt(1)
	e, term := new(big.Int), new(big.Int).Lsh(one, 1918+64) // 2^1918 e, with bits to spare
	for k := int64(1); term.Sign() > 0; k++ {
		e.Add(e, term)
		term.Div(term, big.NewInt(k))
	}
	p := e.Rsh(e, 64)
	p.Add(p, big.NewInt(560316)).Lsh(p, 64).Sub(p, one)
	return p.Add(p, new(big.Int).Lsh(one, 2048)).Sub(p, new(big.Int).Lsh(one, 1984))
}

// TestGroup: it is the group that everybody has looked at.
func TestGroup(t *testing.T) {
	p := ffdhe2048()
	half := new(big.Int).Rsh(p, 1)
	if p.BitLen() != 2048 || !p.ProbablyPrime(1) || !half.ProbablyPrime(1) {
		t.Errorf("%x is no safe prime", p)
	}
}

// make writes name-cert.pem and name-key.pem.
func (c certificates) make(t *testing.T, name string, parent *x509.Certificate, by *ecdsa.PrivateKey, with func(*x509.Certificate)) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	check := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	check(err)
	x := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	with(x)
	if parent == nil {
		parent, by = x, key
	}
	der, err := x509.CreateCertificate(crand.Reader, x, parent, &key.PublicKey, by)
	check(err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	check(err)
	check(os.WriteFile(c.file(name+"-cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	check(os.WriteFile(c.file(name+"-key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	made, err := x509.ParseCertificate(der)
	check(err)
	return key, made
}

// server is what a server of ours has.
func (c certificates) server(t *testing.T) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.file("server-cert.pem"), c.file("server-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	c, stranger := newCertificates(t), newCertificates(t)
	ours := TLS{CA: c.file("ca-cert.pem"), Cert: c.file("client-cert.pem"), Key: c.file("client-key.pem")}
	port := freePort(t)
	p := start(t, "nbdkit", "-f", "-p", port, "-i", "127.0.0.1", "--tls=require", "--tls-verify-peer", "--tls-certificates="+c.dir, "memory", "16M")
	o := Options{URI: "nbds://127.0.0.1:" + port, TLS: ours}
	reachable(t, p, o)
	t.Run("nbdkit over TCP", func(t *testing.T) {
		t.Parallel()
		s := open(t, o)
		if !strings.Contains(s.Info().Describe, "TLS") {
			t.Errorf("it is %s", s.Info().Describe)
		}
		suite(t, newBench(t).use(s))
	})
	t.Run("nbd:// with certificates", func(t *testing.T) {
		s := open(t, Options{URI: "nbd://127.0.0.1:" + port, TLS: ours})
		if !strings.Contains(s.Info().Describe, "TLS") {
			t.Errorf("it is %s", s.Info().Describe)
		}
	})
	t.Run("qemu-nbd over a unix socket", func(t *testing.T) {
		t.Parallel()
		socket := socketPath(t, "q")
		o := Options{URI: "nbds+unix:///?tls-hostname=localhost&socket=" + socket, TLS: ours}
		p := start(t, "qemu-nbd", "-t", "-f", "raw", "-k", socket, "-e", "4", "--object",
			"tls-creds-x509,id=tls0,endpoint=server,dir="+c.dir, "--tls-creds", "tls0", image(t))
		reachable(t, p, o)
		suite(t, newBench(t).use(open(t, o)))
	})
	for _, w := range []struct {
		name string
		tls  TLS
		want string
	}{
		{"an authority that did not sign", TLS{CA: stranger.file("ca-cert.pem"), Cert: ours.Cert, Key: ours.Key}, "certificate is signed by an unknown authority: name the file"},
		{"another name", TLS{CA: ours.CA, Cert: ours.Cert, Key: ours.Key, ServerName: "other.example"}, "is for localhost, 127.0.0.1, not for other.example"},
		{"the system's authorities", TLS{Cert: ours.Cert, Key: ours.Key}, "certificate is signed by an unknown authority: name the file"},
		{"no certificate of ours", TLS{CA: ours.CA}, "our certificate"},
		{"a stranger's certificate of ours", TLS{CA: ours.CA, Cert: stranger.file("client-cert.pem"), Key: stranger.file("client-key.pem")}, "our certificate"},
	} {
		t.Run(w.name, func(t *testing.T) { refused(t, Options{URI: o.URI, TLS: w.tls}, nil, w.want) })
	}
	for _, w := range []struct {
		name string
		tls  TLS
		want string
	}{
		{"no such file", TLS{CA: c.file("none")}, "no such file"},
		{"no PEM", TLS{CA: image(t)}, "no certificate in PEM form"},
		{"half a pair", TLS{CA: ours.CA, Cert: ours.Cert}, "belong together"},
		{"a key of another", TLS{CA: ours.CA, Cert: ours.Cert, Key: stranger.file("client-key.pem")}, "our own certificate"},
	} {
		t.Run(w.name, func(t *testing.T) { refused(t, Options{URI: o.URI, TLS: w.tls}, nil, w.want) })
	}
}

// A certificate that is out of date, in a sentence, like everything else that is wrong with one.
func TestDistrust(t *testing.T) {
	old := x509.CertificateInvalidError{Reason: x509.Expired, Cert: &x509.Certificate{NotBefore: time.Unix(0, 0).UTC(), NotAfter: time.Unix(86400, 0).UTC()}}
	long := &x509.Certificate{DNSNames: strings.Split(strings.Repeat("name.example ", 1000), " ")}
	for _, c := range []struct {
		err  error
		want string
	}{
		{old, "valid from 1970-01-01 00:00:00 to 1970-01-02 00:00:00: renew it"},
		{x509.HostnameError{Certificate: long, Host: "h"}, "is for name.example, name.example, "},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"}, "is for nobody, not for h"},
		{x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"\x1b[2Jh"}}, Host: "h"}, "is for ?[2Jh, not for h"},
		{x509.CertificateInvalidError{Reason: x509.TooManyIntermediates, Cert: old.Cert}, "the server's certificate: x509: too many intermediates"},
	} {
		got := distrust(&tls.CertificateVerificationError{Err: c.err}, "h").Error()
		if !strings.Contains(got, c.want) || len(got) > 200 {
			t.Errorf("%d bytes: %s; want %q", len(got), got, c.want)
		}
	}
}
