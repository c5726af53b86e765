package nvmetcp

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/shuntio/shunt/blk"
)

// ErrAuthentication says that a controller wants what we do not have.
var ErrAuthentication = errors.New("the subsystem wants DH-HMAC-CHAP authentication, which shunt does not have; let this host in without a key")

// ErrReplaced says that another namespace is found where ours was.
var ErrReplaced = errors.New("another namespace is there now")

// DiscoveryNQN is the name of every discovery subsystem.
const DiscoveryNQN = "nqn.2014-08.org.nvmexpress.discovery"

// Options say where a namespace is, and how to reach it. Address and NQN must be set.
type Options struct {
	// Address of the controller, host:port. Without a port: 4420.
	Address string
	// NQN is the subsystem's name.
	NQN string
	// NSID is the namespace. Zero: 1.
	NSID uint32
	// HostNQN and HostID are who we are, the same after every restart. Zero: as /etc/nvme/hostnqn and hostid say, else derived from the machine's id.
	HostNQN string
	HostID  [16]byte
	// Digests, of headers and of data, must be agreed to by the controller.
	HeaderDigest, DataDigest bool
	// KATO is the keep-alive timeout: after so long without a sign of life either side gives the other up. It is also how long a reconnect waits
	// where the old controller does not answer. Zero: 5 s. At least 1 s.
	KATO time.Duration
	// QueueDepth is how many commands may be under way in one lane; the controller may allow less. Zero: 128. At most 1023.
	QueueDepth int
	// Queues is how many lanes there may be; the controller may allow less. Zero: 16.
	Queues int
	// ConnectTimeout bounds one attempt to make an association. Zero: 5 s.
	ConnectTimeout time.Duration
	// CommandTimeout is after how long a command is aborted; it has a quarter of that, and a second, more to end before the association is given up. Zero: 30 s.
	CommandTimeout time.Duration
	// ReconnectDelay is between attempts, at most: they begin fast, and each waits twice as long as the one before, by up to a half more or less. Zero: 1 s.
	ReconnectDelay time.Duration
	// CtrlLossTimeout is after how long without an association no more attempts are made, until somebody calls Refresh. Zero: they go on for ever,
	// and what becomes of requests meanwhile is the volume's policy.
	CtrlLossTimeout time.Duration
	// Quiesce is how long after the end of a process that had writes under way the next one writes (blk.Info), if that is longer than what it takes a controller to end an
	// association that has fallen silent. It is also how long a controller may take to end the writes it was given after it was disabled, if that is longer than CommandTimeout, or after it
	// has fallen silent: where its disk hangs for longer, they may be carried out after newer ones. Zero: it is not.
	Quiesce time.Duration
	// Watcher hears when the namespace has changed; nil: nobody.
	Watcher blk.Watcher
}

// ParseURL reads nvme+tcp://host:port/nqn?nsid=1. Further keys: hdgst and ddgst (0 or 1), kato (a duration), depth, hostnqn.
func ParseURL(text string) (Options, error) {
	u, err := url.Parse(text)
	if err != nil {
		return Options{}, fmt.Errorf("%q is no URL (%w): write nvme+tcp://host:port/nqn?nsid=1", text, errors.Unwrap(err))
	}
	o := Options{Address: u.Host, NQN: strings.TrimPrefix(u.Path, "/")}
	if u.Scheme != "nvme+tcp" {
		return o, fmt.Errorf("%q is no URL of an NVMe/TCP namespace; it is nvme+tcp://host:port/nqn?nsid=1", text)
	}
	if u.User != nil || u.Fragment != "" {
		return o, fmt.Errorf("%q: an NVMe/TCP namespace has neither user nor fragment: remove it", text)
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return o, fmt.Errorf("%q: %w", text, err)
	}
	for key, values := range q {
		if len(values) != 1 {
			return o, fmt.Errorf("%q: %s is given %d times: give it once", text, key, len(values))
		}
		if err := o.set(key, values[0]); err != nil {
			return o, fmt.Errorf("%q: %w", text, err)
		}
	}
	return o, o.check()
}

func (o *Options) set(key, value string) (err error) {
	switch key {
	case "nsid":
		var n uint64
		if n, err = strconv.ParseUint(value, 0, 32); err != nil || n == 0 || n >= 0xfffffffe {
			return fmt.Errorf("nsid %q is no number of a namespace, which is 1 or more", value)
		}
		o.NSID = uint32(n)
	case "hdgst", "ddgst":
		on, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%s is 0 or 1, not %q", key, value)
		}
		if key == "hdgst" {
			o.HeaderDigest = on
		} else {
			o.DataDigest = on
		}
	case "kato":
		if o.KATO, err = time.ParseDuration(value); err != nil {
			return fmt.Errorf("kato %q is no duration, such as 5s", value)
		}
	case "depth":
		if o.QueueDepth, err = strconv.Atoi(value); err != nil {
			return fmt.Errorf("depth %q is no number, such as 128", value)
		}
	case "hostnqn":
		o.HostNQN = value
	default:
		return fmt.Errorf("unknown key %q; there are nsid, hdgst, ddgst, kato, depth, hostnqn", key)
	}
	return nil
}

// check refuses what cannot be, and fills in what is zero.
func (o *Options) check() error {
	if o.Address == "" {
		return errors.New("the NVMe/TCP controller has no address; it is host:port")
	}
	if _, _, err := net.SplitHostPort(o.Address); err != nil {
		o.Address = net.JoinHostPort(strings.Trim(o.Address, "[]"), "4420")
		if _, _, err := net.SplitHostPort(o.Address); err != nil {
			return fmt.Errorf("the NVMe/TCP controller's address: %w: write host:port", err)
		}
	}
	if err := checkNQN("subsystem", o.NQN); err != nil {
		return err
	}
	if o.HostNQN == "" || o.HostID == [16]byte{} {
		if err := o.host(); err != nil {
			return err
		}
	}
	if err := checkNQN("host", o.HostNQN); err != nil {
		return err
	}
	fill(&o.NSID, 1)
	fill(&o.KATO, 5*time.Second)
	fill(&o.QueueDepth, 128)
	fill(&o.Queues, 16)
	fill(&o.ConnectTimeout, 5*time.Second)
	fill(&o.CommandTimeout, 30*time.Second)
	fill(&o.ReconnectDelay, time.Second)
	switch {
	case o.KATO < time.Second || o.KATO > time.Hour:
		return fmt.Errorf("a keep-alive timeout of %v; it is one second to one hour", o.KATO)
	case o.QueueDepth < 1 || o.QueueDepth > maxDepth:
		return fmt.Errorf("a queue depth of %d; it is 1 to %d", o.QueueDepth, maxDepth)
	case o.Queues < 1 || o.Queues > 1024:
		return fmt.Errorf("%d queues; they are 1 to 1024", o.Queues)
	}
	return nil
}

func fill[T comparable](to *T, value T) {
	var zero T
	if *to == zero {
		*to = value
	}
}

func checkNQN(whose, nqn string) error {
	if len(nqn) < 12 || len(nqn) > 223 || !strings.HasPrefix(nqn, "nqn.") {
		return fmt.Errorf("the %s's name %q is no NQN: it begins with \"nqn.\" and has 12 to 223 bytes", whose, nqn)
	}
	return nil
}

// host finds out who we are. The id is a hash, since the machine's own is said to be nobody else's business (machine-id(5)).
func (o *Options) host() error {
	id, name := readLine("/etc/nvme/hostid"), readLine("/etc/nvme/hostnqn")
	var uuid [16]byte
	if n, err := hex.Decode(uuid[:], []byte(strings.ReplaceAll(id, "-", ""))); len(id) != 36 || err != nil || n != 16 {
		machine := readLine("/etc/machine-id")
		if machine == "" {
			return errors.New("this host has no identity: neither /etc/nvme/hostid nor /etc/machine-id is there; name a host NQN and a host id")
		}
		sum := sha256.Sum256([]byte("shunt nvme host " + machine))
		copy(uuid[:], sum[:])
		uuid[6], uuid[8] = uuid[6]&0xf|0x80, uuid[8]&0x3f|0x80 // version 8, RFC 9562
	}
	if o.HostID == [16]byte{} {
		o.HostID = uuid
	}
	if o.HostNQN == "" {
		o.HostNQN = name
	}
	if o.HostNQN == "" {
		o.HostNQN = "nqn.2014-08.org.nvmexpress:uuid:" + formatUUID(uuid)
	}
	return nil
}

func readLine(path string) string {
	b, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}
