package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// kernelPackage depends on the newest stock kernel; the kernel itself is in a
// package whose name has its version.
const kernelPackage = "linux-image-amd64"

// followed are the dependencies that may hold a library a program needs.
// Others (configuration, accounts) mean nothing in an initial file system.
var followed = regexp.MustCompile(`^(lib|zlib|linux-image-)`)

// aptLists changes its time whenever apt's knowledge of packages does.
const aptLists = "/var/lib/apt/lists"

// resolveOnce is resolve with the answer kept in the cache until apt's lists
// change, as apt takes seconds. The caller holds the cache's lock.
func resolveOnce(ctx context.Context, cache string, names []string) ([]string, error) {
	key := digest(fmt.Sprint(names, modified(aptLists).UnixNano()))
	path := filepath.Join(cache, "packages-"+key)
	if text, err := os.ReadFile(path); err == nil && bytes.HasSuffix(text, []byte("\n\n")) {
		return strings.Fields(string(text)), nil
	}
	packages, err := resolve(ctx, names)
	if err != nil {
		return nil, err
	}
	stale, err := filepath.Glob(filepath.Join(cache, "packages-*"))
	if err != nil {
		return nil, err
	}
	for _, path := range stale {
		_ = os.Remove(path)
	}
	// The empty line at the end tells a whole list.
	return packages, os.WriteFile(path, []byte(strings.Join(packages, "\n")+"\n\n"), 0o644)
}

// resolve returns the packages and the libraries they depend on, sorted, as
// name=version, at the versions apt would install.
func resolve(ctx context.Context, names []string) ([]string, error) {
	versions := map[string]string{}
	for wanted := slices.Clone(names); len(wanted) > 0; {
		stanzas, err := show(ctx, wanted)
		if err != nil {
			return nil, err
		}
		wanted = nil
		for _, s := range stanzas {
			versions[s["Package"]] = s["Version"]
			for _, name := range dependencies(s["Depends"], s["Pre-Depends"]) {
				if _, known := versions[name]; !known && followed.MatchString(name) && !slices.Contains(wanted, name) {
					wanted = append(wanted, name)
				}
			}
		}
	}
	delete(versions, kernelPackage)
	var all []string
	for name, version := range versions {
		all = append(all, name+"="+version)
	}
	slices.Sort(all)
	return all, nil
}

// show asks apt for packages. Names it has in one stanza each.
func show(ctx context.Context, names []string) ([]map[string]string, error) {
	out, err := apt(ctx, "", "apt-cache", append([]string{"show", "--no-all-versions"}, names...)...)
	if err != nil {
		return nil, fmt.Errorf("look up packages; run apt-get update: %w", err)
	}
	var stanzas []map[string]string
	for text := range strings.SplitSeq(out, "\n\n") {
		s := map[string]string{}
		for line := range strings.Lines(text) {
			if key, value, ok := strings.Cut(line, ": "); ok && !strings.HasPrefix(line, " ") {
				s[key] = strings.TrimSpace(value)
			}
		}
		if s["Package"] != "" && s["Version"] != "" {
			stanzas = append(stanzas, s)
		}
	}
	return stanzas, nil
}

// dependencies takes the first of each group of alternatives, without its
// version and architecture.
func dependencies(fields ...string) []string {
	var names []string
	for _, field := range fields {
		for group := range strings.SplitSeq(field, ",") {
			if words := strings.Fields(group); len(words) > 0 {
				name, _, _ := strings.Cut(words[0], ":")
				names = append(names, name)
			}
		}
	}
	return names
}

func download(ctx context.Context, dir string, packages []string) error {
	// apt drops root for downloads and then cannot write into our directory.
	args := append([]string{"download", "-o", "APT::Sandbox::User=root"}, packages...)
	if _, err := apt(ctx, dir, "apt-get", args...); err != nil {
		return fmt.Errorf("download packages; check the network, run apt-get update: %w", err)
	}
	return nil
}

func unpack(ctx context.Context, dir, root string) error {
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if _, err := apt(ctx, "", "dpkg-deb", "-x", deb, root); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
		}
	}
	return nil
}

// apt runs one of Debian's package tools and returns its standard output.
func apt(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(exit.Stderr)))
	}
	return string(out), err
}

func modified(path string) time.Time {
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}
