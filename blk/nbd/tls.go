package nbd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// TLS says how to speak TLS with a server. Its zero value: with nbds:// the system's authorities must have signed the server's certificate, and we show
// none; with nbd:// no TLS. If anything is set TLS is spoken with nbd:// too. There is no way to be content with less.
type TLS struct {
	// CA is a file of certificates (PEM) of which one must have signed the server's. Empty: the system's.
	CA string
	// Cert and Key are files (PEM) of our own certificate. Empty: none.
	Cert, Key string
	// ServerName is whose certificate the server must have. Empty: the URI's tls-hostname or host.
	ServerName string
}

// config reads the files anew, so that a certificate can be renewed under a running daemon.
func (t TLS) config(a address) (*tls.Config, error) {
	if !a.secure && t == (TLS{}) {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if c.ServerName == "" {
		c.ServerName = a.host
	}
	if c.ServerName == "" {
		return nil, errors.New("nothing says whose certificate the server must have; add tls-hostname=NAME to the URI")
	}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("certificates of the authorities: %w: name a file that can be read (tls: ca)", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate in PEM form: name a file that has (tls: ca)", t.CA)
		}
	}
	if (t.Cert == "") != (t.Key == "") {
		return nil, errors.New("a client's certificate and its key belong together; set both or none")
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("our own certificate: %w: name files with a certificate and its key (tls: cert, key)", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// distrust says in a sentence why TLS is not spoken, and what to do: the library's tells of attempts with certificates that nobody knows.
func distrust(err error, name string) error {
	var (
		certificate *tls.CertificateVerificationError
		unknown     x509.UnknownAuthorityError
		other       x509.HostnameError
		invalid     x509.CertificateInvalidError
	)
	switch {
	case !errors.As(err, &certificate):
		return fmt.Errorf("TLS with %s: %w", name, err)
	case errors.As(err, &unknown):
		return errors.New("the server's certificate is signed by an unknown authority: name the file with the authority's certificate (tls: ca)")
	case errors.As(err, &other):
		return fmt.Errorf("the server's certificate is for %s, not for %s: give the server another one, or say whom to expect (tls: server-name)", names(other.Certificate), name)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the server's certificate is valid from %s to %s: renew it, or set the clock", invalid.Cert.NotBefore.Format(time.DateTime), invalid.Cert.NotAfter.Format(time.DateTime))
	}
	return fmt.Errorf("the server's certificate: %w", certificate.Err)
}

// names are whom a certificate is for, as far as it is worth reading.
func names(c *x509.Certificate) string {
	all := append([]string(nil), c.DNSNames...)
	for _, a := range c.IPAddresses {
		all = append(all, a.String())
	}
	if len(all) == 0 {
		return "nobody"
	}
	return printable([]byte(strings.Join(all, ", ")), 60)
}
