package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
)

// Pin keeps a loaded program and its maps when nobody has them open any more. It
// makes
//
//	DIR/program
//	DIR/maps/NAME    a dot in the name, which bpffs forbids, becomes "_"
//
// and, when that fails, removes what it made. DIR must not exist. Pins are
// removed like files.
func Pin(prog *ebpf.Program, dir string) (err error) {
	dir = filepath.Clean(dir)
	if err := mountBPFFS(dir); err != nil {
		return err
	}
	info, err := prog.Info()
	if err != nil {
		return Explain("look at the program to pin", err)
	}
	id, _ := info.ID()
	maps, err := programMaps(id)
	if err != nil {
		return err
	}
	defer closeMaps(maps)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return Explain("make the pin directory", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := prog.Pin(filepath.Join(dir, "program")); err != nil {
		return Explain("pin the program", err)
	}
	if err := os.Mkdir(filepath.Join(dir, "maps"), 0o700); err != nil {
		return Explain("make the pin directory", err)
	}
	for _, m := range maps {
		if err := m.Pin(filepath.Join(dir, "maps", strings.ReplaceAll(tableName(m), ".", "_"))); err != nil {
			return Explain("pin map "+tableName(m), err)
		}
	}
	return nil
}

// PinAttached pins the program that runs on an interface, ours or not; see [Pin].
// It does not pin what attaches it.
func PinAttached(iface, dir string) error {
	dev, err := findDevice(iface)
	if err != nil {
		return err
	}
	if dev.program == 0 {
		return notAttached(dev)
	}
	prog, err := ebpf.NewProgramFromID(dev.program)
	if err != nil {
		return Explain("open "+dev.describe(), err)
	}
	defer prog.Close()
	return Pin(prog, dir)
}

// OpenPin returns a program pinned by [Pin], or at path itself.
func OpenPin(path string) (*ebpf.Program, error) {
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		path = filepath.Join(path, "program")
	}
	prog, err := ebpf.LoadPinnedProgram(path, nil)
	return prog, Explain("open the pinned program "+path, err)
}
