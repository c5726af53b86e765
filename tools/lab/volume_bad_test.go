package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/dataplane/vhostuser"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/lab/daemon"
	"github.com/shuntio/shunt/tools/lab/netlab"
	"github.com/shuntio/shunt/tools/need"
)

// TestBadVolumes: what can be wrong about a source, each with the one sentence that says so: when it is checked, and when a daemon starts with it, which does not do so
// if it cannot be a source at all, goes on without what the operator has to change here, and has a volume wait for a server that may have it tomorrow.
func TestBadVolumes(t *testing.T) {
	need.Program(t, "nbdkit", "openssl")
	ctx := within(t, time.Minute)
	s := newShelf(t, "[1]")
	for _, name := range []string{"readonly", "short", "file", "good"} {
		s.blank(t, name, shelfDisk)
	}
	must(t, os.Truncate(s.image("short"), 1000))
	s.nbdkit(t, "readonly", "-r", "file", s.image("readonly"))
	exports := filepath.Join(s.dir, "exports")
	must(t, os.Mkdir(exports, 0o700))
	must(t, os.WriteFile(filepath.Join(exports, "there"), make([]byte, 4096), 0o600))
	at := "?socket=" + exports + ".nbd"
	s.serveAt(t, "exports", "nbd+unix:///there"+at, `exec nbdkit -f -U "$0" "$@"`, "file", "dir="+exports)
	secure := s.strangers(t)

	checker := start(t, namespace(t, "checker"), "checker", "workers: {cpus: [1], huge-pages: off}\n")
	for name, test := range map[string]struct {
		source, more, want string
		waits, ends        bool
	}{
		"wrong URI":             {source: "nbd://", want: "names no host", ends: true},
		"unknown scheme":        {source: "iscsi://192.0.2.9/x", want: `has the scheme "iscsi"`, ends: true},
		"missing export":        {source: "nbd+unix:///gone" + at, want: "no such export: name one that it lists", waits: true},
		"refused connection":    {source: "nbd://127.0.0.1:1/x", want: "connection refused: start the server, or correct host and port", waits: true},
		"refused by a host":     {source: "nvme+tcp://127.0.0.1:1/nqn.2014-08.org.example:x?nsid=1", want: "connection refused: start it, or correct host and port", waits: true},
		"missing socket":        {source: "nbd+unix:///x?socket=" + s.dir + "/none", want: "no such file or directory: start the server, or correct the socket's path", waits: true},
		"read-only server":      {source: s.nbd("readonly"), want: "read-only", waits: true},
		"wrong certificate":     {source: secure + "&tls-hostname=localhost", want: "unknown authority", waits: true},
		"size of half a sector": {source: "file://" + s.image("short"), want: "not a multiple"},
		"missing file":          {source: "file://" + s.image("missing"), want: "no such file"},
		"directory":             {source: "file://" + s.dir, want: "neither a regular file nor a block device: name one"},
		"serial too long":       {source: "file://" + s.image("file"), more: ", serial: a-serial-of-22-bytes-x", want: "at most 20", ends: true},
	} {
		t.Run(name, func(t *testing.T) {
			if test.more == "" {
				_, err := checker.API().CheckVolume(ctx, config.VolumeSource{Source: test.source})
				oneSentence(t, test.source, "the check", fmt.Sprint(err), test.want)
			}
			d := prepare(t, namespace(t, "host"), "shuntd", "")
			dir := filepath.Dir(d.Socket())
			d.SetConfig(fmt.Sprintf("workers: {cpus: [1], huge-pages: off}\nvolumes:\n  - {name: bad, socket: %q, source: %q%s}\n  - {name: good, socket: %q, source: %q}\n",
				filepath.Join(dir, "bad.sock"), test.source, test.more, filepath.Join(dir, "good.sock"), "file://"+s.image("good")))
			err := d.Start(ctx)
			if test.waits {
				must(t, err)
				oneSentence(t, test.source, "the status", waitsFor(t, ctx, d, "bad"), test.want)
				return
			}
			part, exit := (*daemon.PartError)(nil), (*daemon.ExitError)(nil)
			if test.ends {
				if !errors.As(err, &exit) || exit.Status <= 0 {
					t.Fatalf("the daemon: %v", err)
				}
				lines := strings.Split(strings.TrimSpace(exit.Log), "\n")
				oneSentence(t, test.source, "the refusal", lines[len(lines)-1], test.want)
				return
			}
			if !errors.As(err, &part) || len(part.Failed) != 1 || part.Failed[0].Retry == nil {
				t.Fatalf("the daemon: %v", err)
			}
			said := part.Failed[0].Error
			oneSentence(t, test.source, "the status", said, test.want)
			awaitCondition(t, ctx, "the log", func() bool { return strings.Contains(d.Log(), "shuntd is ready") })
			if line := fmt.Sprintf(`level=ERROR msg="configuration not applied" kind=volume name=bad error=%q`, said); strings.Count(d.Log(), line) != 1 {
				t.Errorf("the log says\n%swant once\n%s", d.Log(), line)
			}
			f, err := vhostuser.DialWait(ctx, filepath.Join(filepath.Dir(d.Socket()), "good.sock")) // which the bad one holds up in nothing
			must(t, err)
			must(t, f.Close())
		})
	}
}

// oneSentence looks for words in what must be one line that a person can read, beside the source that it names.
func oneSentence(t *testing.T, source, who, said, want string) {
	t.Helper()
	said = strings.TrimSpace(said)
	if n := len(strings.ReplaceAll(said, source, "")); !strings.Contains(said, want) || strings.Contains(said, "\n") || n > 200 {
		t.Errorf("%s says %q, of which %d bytes are its own, want one sentence with %q", who, said, n, want)
	}
	t.Logf("%s: %s", who, said)
}

// waitsFor is why a volume waits, once its store was tried.
func waitsFor(t *testing.T, ctx context.Context, d *daemon.Daemon, name string) string {
	t.Helper()
	for {
		v, err := d.API().Volume(ctx, name)
		must(t, err)
		if v.Status.State == control.StateWaiting && !strings.Contains(v.Status.Reason, "being opened") {
			return v.Status.Reason
		}
		select {
		case <-ctx.Done():
			t.Fatalf("volume %s is %s: %s", name, v.Status.State, v.Status.Reason)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// strangers starts a server whose certificate nobody here has signed, and returns its URI.
func (s *shelf) strangers(t *testing.T) (uri string) {
	t.Helper()
	pki := s.pki(t)
	uri = "nbds+unix:///?socket=" + filepath.Join(s.dir, "secure.nbd")
	s.serveAt(t, "secure", uri+"&tls-certificates="+pki, `exec nbdkit -f -U "$0" "$@"`, "--tls=require", "--tls-certificates="+pki, "memory", "1M")
	return uri
}

// pki makes a certificate for localhost that has signed itself, in a directory as GnuTLS's servers want it.
func (s *shelf) pki(t *testing.T) (dir string) {
	t.Helper()
	pki := filepath.Join(s.dir, "pki")
	must(t, os.Mkdir(pki, 0o700))
	key, cert := filepath.Join(pki, "server-key.pem"), filepath.Join(pki, "server-cert.pem")
	run(t, (*netlab.Namespace)(nil), "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
		"-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert)
	text, err := os.ReadFile(cert)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(pki, "ca-cert.pem"), text, 0o600))
	return pki
}
