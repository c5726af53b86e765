package main

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/spf13/cobra"

	"github.com/shuntio/shunt/bpf"
)

// source says where a program comes from: the built-in one, an object file, or a
// pin.
type source struct {
	object  string
	program string
	pinned  string
	log     bool
}

func (s *source) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.object, "object", "", "object file to take the program from, instead of the one built in")
	f.StringVar(&s.program, "program", "", "name of the program in the object file, if it has several for XDP")
	f.BoolVar(&s.log, "log", false, "print what the kernel's verifier says about a program it refuses")
}

func (s *source) builtIn() bool { return s.object == "" && s.pinned == "" }

func (s *source) check() error {
	switch {
	case s.object != "" && s.pinned != "":
		return badUsage("--object and --pinned exclude each other")
	case s.program != "" && s.pinned != "":
		return badUsage("--program and --pinned exclude each other")
	}
	return nil
}

// load loads the program into the kernel. With it, a collection holds the maps
// of an object file.
func (s *source) load() (*ebpf.Program, error) {
	if s.pinned != "" {
		prog, err := bpf.OpenPin(s.pinned)
		if err == nil && prog.Type() != ebpf.XDP {
			prog.Close()
			return nil, badUsage("the program pinned at %s is for %s, not XDP", s.pinned, prog.Type())
		}
		return prog, err
	}
	spec, name, err := s.spec()
	if err != nil {
		return nil, err
	}
	spec.Programs = map[string]*ebpf.ProgramSpec{name: spec.Programs[name]}
	opts := ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: filepath.Dir(bpf.DefaultPinPath)}}
	coll, err := ebpf.NewCollectionWithOptions(spec, opts)
	if err != nil {
		return nil, s.refused(name, err)
	}
	defer coll.Close()
	return coll.DetachProgram(name), nil
}

// spec reads the object and chooses the program in it.
func (s *source) spec() (*ebpf.CollectionSpec, string, error) {
	spec, err := bpf.Spec()
	where := "the built-in object"
	if s.object != "" {
		where = s.object
		if spec, err = ebpf.LoadCollectionSpec(s.object); err != nil {
			return nil, "", badUsage("%s is no BPF object file: %w", s.object, err)
		}
	}
	if err != nil {
		return nil, "", err
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
		if spec.Programs[name].Type == ebpf.XDP {
			names = append(names, name)
		}
	}
	switch {
	case len(names) == 0:
		return nil, "", badUsage("%s has no XDP program", where)
	case s.program != "" && !slices.Contains(names, s.program):
		return nil, "", badUsage("%s has no XDP program %q but %s", where, s.program, strings.Join(names, ", "))
	case s.program != "":
		return spec, s.program, nil
	case len(names) > 1 && s.object != "":
		return nil, "", badUsage("%s has several XDP programs, choose one with --program: %s", where, strings.Join(names, ", "))
	}
	return spec, names[0], nil
}

// refused explains the kernel's no; with --log it ends in the verifier's words.
func (s *source) refused(name string, err error) error {
	var verifier *ebpf.VerifierError
	if !errors.As(err, &verifier) || len(verifier.Log) == 0 {
		return bpf.Explain("load program "+name, err)
	}
	if s.log {
		return fmt.Errorf("the kernel's verifier refuses program %s:\n%s", name, strings.Join(verifier.Log, "\n"))
	}
	return fmt.Errorf("the kernel's verifier refuses program %s, --log shows why: %w", name, verifier)
}
