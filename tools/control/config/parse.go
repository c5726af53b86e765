package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/shuntio/shunt/vxlan/acl"
)

// Read is Parse for a file. An error that is no *Error says that there is nothing to read.
func Read(file string) (*Config, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, unreadable(file, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MaxDocument+1)) // it may be a device
	if err != nil {
		return nil, unreadable(file, err)
	}
	return Parse(file, text)
}

func unreadable(file string, err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	advice := "name a file that can be read"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		advice = "create it, or name another file"
	case errors.Is(err, fs.ErrPermission):
		advice = "run as its owner or as root, or change its mode"
	}
	return fmt.Errorf("read the configuration %s: %w: %s", file, err, advice)
}

// Parse decodes and checks a YAML document. The file's name is for messages only. The error is an *Error.
func Parse(file string, text []byte) (*Config, error) {
	return parse(file, text, readYAML)
}

// ParseJSON decodes and checks a JSON document of the API. The error is an *Error.
func ParseJSON(text []byte) (*Config, error) {
	return parse("", text, readJSON)
}

func parse(file string, text []byte, read func([]byte) (*node, *Problem)) (*Config, error) {
	c := &Config{}
	at, problems := decode(text, c, read)
	if len(problems) == 0 { // the rules look at values, which a failed decode left out
		problems = c.check(at)
	}
	if err := failure(file, problems); err != nil {
		return nil, err
	}
	c.fill()
	return c, nil
}

// WithUplink returns base with the uplink of a JSON document added, or put in the place of the one with its name. A name
// in the document must be this one. The error is an *Error.
func WithUplink(base *Config, name string, text []byte) (*Config, error) {
	return with(base, "uplinks", name, text, func(c *Config) *[]Uplink { return &c.Uplinks },
		func(u *Uplink) *string { return &u.Name })
}

// WithNetwork does for networks what WithUplink does for uplinks.
func WithNetwork(base *Config, name string, text []byte) (*Config, error) {
	return with(base, "networks", name, text, func(c *Config) *[]Network { return &c.Networks },
		func(n *Network) *string { return &n.Name })
}

// WithPort does for ports what WithUplink does for uplinks.
func WithPort(base *Config, name string, text []byte) (*Config, error) {
	return with(base, "ports", name, text, func(c *Config) *[]Port { return &c.Ports },
		func(p *Port) *string { return &p.Name })
}

// WithVolume does for volumes what WithUplink does for uplinks.
func WithVolume(base *Config, name string, text []byte) (*Config, error) {
	return with(base, "volumes", name, text, func(c *Config) *[]Volume { return &c.Volumes },
		func(v *Volume) *string { return &v.Name })
}

// WithVolumeGroup does for volume groups what WithUplink does for uplinks.
func WithVolumeGroup(base *Config, name string, text []byte) (*Config, error) {
	return with(base, "volume-groups", name, text, func(c *Config) *[]VolumeGroup { return &c.VolumeGroups },
		func(g *VolumeGroup) *string { return &g.Name })
}

func with[T any](base *Config, key, name string, text []byte, list func(*Config) *[]T, nameOf func(*T) *string) (*Config, error) {
	var object T
	at, problems := decode(text, &object, readJSON)
	if len(problems) > 0 {
		return nil, failure("", problems)
	}
	switch n := nameOf(&object); {
	case *n == "":
		*n = name
	case *n != name:
		return nil, failure("", []Problem{{Path: "name", Line: at["name"].line, Column: at["name"].column,
			Reason: fmt.Sprintf("%s is not the name in the request's path, %s", quote(*n), quote(name))}})
	}
	c := *base
	all := list(&c)
	i := slices.IndexFunc(*all, func(o T) bool { return *nameOf(&o) == name })
	*all = slices.Clone(*all)
	if i < 0 {
		i = len(*all)
		*all = append(*all, object)
	} else {
		(*all)[i] = object
	}
	prefix := fmt.Sprintf("%s[%d]", key, i)
	moved := positions{}
	for path, p := range at {
		moved[strings.TrimSuffix(prefix+"."+path, ".")] = p
	}
	if problems := c.check(moved); len(problems) > 0 {
		for i := range problems {
			if rest, ok := strings.CutPrefix(problems[i].Path, prefix); ok {
				problems[i].Path = strings.TrimPrefix(rest, ".")
			}
		}
		return nil, failure("", problems)
	}
	c.fill()
	return &c, nil
}

// ParseACL decodes and checks the JSON document of one port's policy. The error is an *Error.
func ParseACL(text []byte) (*acl.Policy, error) {
	p := new(acl.Policy)
	return p, parsePart(text, p, func(k *checker) { k.acl("", *p) })
}

// ParseWorkers decodes the JSON document of one port's list of workers; only whole configurations tell whether there are these. The error is an
// *Error.
func ParseWorkers(text []byte) ([]int, error) {
	var workers []int
	err := parsePart(text, &workers, func(*checker) {})
	return some(workers), err
}

// ParseVolumeSource decodes and checks the JSON document of a place where a volume's data are. The error is an *Error.
func ParseVolumeSource(text []byte) (s VolumeSource, err error) {
	err = parsePart(text, &s, func(k *checker) {
		k.source("", Volume{Source: s.Source, Direct: s.Direct, TLS: s.TLS, Digests: s.Digests, HostNQN: s.HostNQN})
	})
	return s, err
}

func parsePart(text []byte, to any, check func(*checker)) error {
	at, problems := decode(text, to, readJSON)
	if len(problems) == 0 {
		k := &checker{c: &Config{}, at: at}
		check(k)
		problems = k.problems
	}
	return failure("", problems)
}

// Check applies the rules to a configuration that was put together in Go, where zero values stand for absent keys, and
// then fills in the defaults, but for those of booleans (Network.Learning, Port.AntiSpoof and the like), which are taken
// as they are. The error is an *Error.
func Check(c *Config) error {
	if problems := c.check(nil); len(problems) > 0 {
		return failure("", problems)
	}
	c.fill()
	return nil
}
