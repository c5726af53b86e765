package config

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (k *checker) volumeGroups() map[string]bool {
	names, known := map[string]string{}, map[string]bool{}
	for i, g := range k.c.VolumeGroups {
		at := fmt.Sprintf("volume-groups[%d]", i)
		k.name(at+".name", g.Name, names)
		k.volumeLimits(at+".limits", g.Limits)
		known[g.Name] = true
	}
	return known
}

func (k *checker) volumes() {
	groups := k.volumeGroups()
	names, files := map[string]string{}, map[string]int{}
	for i, v := range k.c.Volumes {
		at := fmt.Sprintf("volumes[%d]", i)
		k.name(at+".name", v.Name, names)
		k.volumeSocket(at, v)
		k.source(at, v)
		if len(v.Serial) > MaxSerial {
			k.fail(at+".serial", "%s has %d bytes: a disk's serial number has at most %d: make it shorter", quote(v.Serial), len(v.Serial), MaxSerial)
		} else if strings.ContainsRune(v.Serial, 0) {
			k.fail(at+".serial", "%s has a byte of zero, where a serial number ends", quote(v.Serial))
		}
		k.between(at+".queues", v.Queues, 1, MaxVolumeQueues)
		k.portWorkers(at+".workers", v.Workers, max(v.Queues, DefaultQueues))
		k.lasts(at+".timeout", v.Timeout, 10*time.Millisecond, 24*time.Hour)
		k.lasts(at+".quiesce", v.Quiesce, time.Millisecond, time.Hour)
		k.volumeLimits(at+".limits", v.Limits)
		if v.VolumeGroup != "" && !groups[v.VolumeGroup] {
			k.fail(at+".volume-group", "there is no volume group %s: name one that stands under volume-groups", quote(v.VolumeGroup))
		}
		if Scheme(v.Source) != SchemeFile {
			continue
		}
		if first, twice := files[v.Source]; twice && !(v.ReadOnly && k.c.Volumes[first].ReadOnly) {
			k.fail(at+".source", "%s is that of volumes[%d], too: one guest alone can write to a file; give each its own, or make both readonly", v.Source, first)
		} else if !twice {
			files[v.Source] = i
		}
	}
}

func (k *checker) volumeSocket(at string, v Volume) {
	if v.Socket == "" && !k.given(at+".socket") {
		k.fail(at, "the volume has no socket: give the path of its vhost-user socket")
		return
	}
	k.portSocket(at, Port{Socket: v.Socket, Role: v.Role, Mode: v.Mode, Owner: v.Owner, Group: v.Group})
}

func (k *checker) volumeLimits(at string, l VolumeLimits) {
	k.lasts(at+".burst", l.Burst, time.Millisecond, 10*time.Second)
}

// source checks where a volume's data are, as far as the text tells, and that its other keys are for such a place.
func (k *checker) source(at string, v Volume) {
	if v.Source == "" && !k.given(at+".source") {
		k.fail(at, "the volume has no source: give the URI of its data, as file:///var/lib/vm1.img or nbd://192.0.2.9/vm1")
		return
	}
	if err := CheckSource(v.Source); err != nil {
		k.fail(at+".source", "%v", err)
		return
	}
	scheme := Scheme(v.Source)
	nbd := strings.HasPrefix(scheme, "nbd")
	for _, key := range []struct {
		name         string
		given, fits  bool
		what, unless string
	}{
		{"direct", v.Direct != nil, scheme == SchemeFile, "this is", "file://"},
		{"registered-buffers", v.RegisteredBuffers, scheme == SchemeFile, "this is", "file://"},
		{"quiesce", v.Quiesce != 0, scheme != SchemeFile, "this is", "a server"},
		{"tls", v.TLS != nil, nbd, "this is", "nbd:// and nbds://"},
		{"digests", v.Digests != Digests{}, scheme == SchemeNVMe, "these are", "nvme+tcp://"},
		{"host-nqn", v.HostNQN != "", scheme == SchemeNVMe, "this is", "nvme+tcp://"},
	} {
		if key.given && !key.fits {
			k.fail(at+"."+key.name, "%s for a source that is %s, and this one is %s://: remove it", key.what, key.unless, scheme)
		}
	}
	if v.TLS != nil {
		k.tls(at+".tls", *v.TLS)
	}
	if n := v.HostNQN; n != "" && (!strings.HasPrefix(n, "nqn.") || len(n) < 12 || len(n) > 223) {
		k.fail(at+".host-nqn", "%s is no NQN: it begins with nqn. and has 12 to 223 bytes", quote(n))
	}
}

func (k *checker) tls(at string, t TLS) {
	if (t.Cert == "") != (t.Key == "") {
		k.fail(at, "a certificate and its key belong together: give cert and key, or neither")
	}
	for _, file := range []struct{ key, path string }{{"ca", t.CA}, {"cert", t.Cert}, {"key", t.Key}} {
		if file.path != "" && !path.IsAbs(file.path) {
			k.fail(at+"."+file.key, "%s is not the whole path of a file: begin it with /", quote(file.path))
		}
	}
}

// CheckSource says what is wrong with the URI of a volume's data, nil if nothing is as far as the text tells.
func CheckSource(source string) error {
	u, err := url.Parse(source)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return fmt.Errorf("%s is not a URI: %w", quote(source), err)
	}
	switch {
	case u.Scheme == "" && strings.HasPrefix(source, "/"):
		return fmt.Errorf("%s has no scheme: write file://%s", quote(source), source)
	case !slices.Contains(schemes, u.Scheme):
		return fmt.Errorf("%s has the scheme %s, which is none of %s", quote(source), quote(u.Scheme), strings.Join(schemes, ", "))
	case u.Opaque != "" || !strings.HasPrefix(source, u.Scheme+"://"):
		return fmt.Errorf("%s has no // behind its scheme: write it as %s", quote(source), examples[u.Scheme])
	case u.User != nil || u.Fragment != "":
		return fmt.Errorf("%s has a user or a fragment (#), which mean nothing here: remove them", quote(source))
	}
	if wrong := checkPlace(u); wrong != "" {
		return fmt.Errorf("%s %s: write it as %s", quote(source), wrong, examples[u.Scheme])
	}
	return nil
}

var examples = map[string]string{
	SchemeFile: "file:///var/lib/vm1.img", SchemeNBD: "nbd://192.0.2.9:10809/vm1", SchemeNBDS: "nbds://storage.example:10809/vm1",
	SchemeNBDUnix: "nbd+unix:///vm1?socket=/run/nbd.sock", SchemeNBDSUnix: "nbds+unix:///vm1?socket=/run/nbd.sock",
	SchemeNVMe: "nvme+tcp://192.0.2.9:4420/nqn.2014-08.org.example:disks?nsid=1",
}

// checkPlace says what of the place a URI names is wrong.
func checkPlace(u *url.URL) string {
	switch u.Scheme {
	case SchemeFile:
		switch {
		case u.Host != "":
			return "names the host " + quote(u.Host) + ", and a file is on this one"
		case u.RawQuery != "":
			return "has a query (?), and a file has none"
		case !path.IsAbs(u.Path) || strings.HasSuffix(u.Path, "/") || strings.ContainsRune(u.Path, 0):
			return "has not the whole path of a file"
		}
		return ""
	case SchemeNBDUnix, SchemeNBDSUnix:
		socket := u.Query().Get("socket")
		switch {
		case u.Host != "":
			return "names the host " + quote(u.Host) + ", and a unix socket is on this one"
		case !path.IsAbs(socket):
			return "has no socket=/path in its query"
		case len(socket) > MaxSocketPath:
			return fmt.Sprintf("has a socket of %d bytes, and a unix socket's path has at most %d", len(socket), MaxSocketPath)
		}
		return ""
	}
	if u.Hostname() == "" {
		return "names no host"
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
			return "has the TCP port " + quote(port)
		}
	}
	if u.Scheme == SchemeNVMe && !strings.HasPrefix(u.Path, "/nqn.") {
		return "names no subsystem (nqn...)"
	}
	return ""
}
