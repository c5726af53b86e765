package guest

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// findModules returns the files of the named modules and of all they depend
// on, each after what it needs, so that they can be inserted in this order.
func findModules(dir string, names []string) ([]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".ko") {
			files[moduleName(strings.TrimSuffix(d.Name(), ".ko"))] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var order []string
	visited := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		name = moduleName(name)
		if visited[name] {
			return nil
		}
		visited[name] = true
		path, ok := files[name]
		if !ok {
			return fmt.Errorf("the kernel has no module %s", name)
		}
		needs, err := moduleNeeds(path)
		if err != nil {
			return fmt.Errorf("read what module %s depends on: %w", name, err)
		}
		for _, need := range needs {
			if err := visit(need); err != nil {
				return err
			}
		}
		order = append(order, path)
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName: the kernel does not tell - from _ in the names of modules.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// moduleNeeds reads a module's hard dependencies from its .modinfo section,
// which holds key=value strings, each ended by a zero byte.
func moduleNeeds(path string) ([]string, error) {
	file, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	section := file.Section(".modinfo")
	if section == nil {
		return nil, errors.New("it has no .modinfo section")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	var needs []string
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := strings.CutPrefix(string(entry), "depends="); ok && list != "" {
			needs = append(needs, strings.Split(list, ",")...)
		}
	}
	return needs, nil
}

// findPrograms maps the path in the guest to the file in root, for programs
// and for the loader and libraries they need.
func findPrograms(root string, names []string) (map[string]string, error) {
	libraries := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(d.Name(), ".so") {
			libraries[d.Name()] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, name := range names {
		path, err := findProgram(root, name)
		if err != nil {
			return nil, err
		}
		found["usr/bin/"+name] = path
		if err := addLibraries(found, libraries, path); err != nil {
			return nil, fmt.Errorf("program %s: %w", name, err)
		}
	}
	return found, nil
}

func findProgram(root, name string) (string, error) {
	for _, dir := range []string{"usr/bin", "usr/sbin", "bin", "sbin"} {
		path := filepath.Join(root, dir, name)
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("no package has the program %s", name)
}

// addLibraries adds what an ELF file needs to found, and what that needs.
func addLibraries(found, libraries map[string]string, path string) error {
	file, err := elf.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for _, segment := range file.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		text, err := io.ReadAll(segment.Open())
		if err != nil {
			return err
		}
		loader := strings.Trim(string(text), "\x00")
		found[strings.TrimPrefix(loader, "/")] = libraries[filepath.Base(loader)]
	}
	needs, err := file.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, need := range needs {
		inGuest := "lib/x86_64-linux-gnu/" + need
		if found[inGuest] != "" {
			continue
		}
		library, ok := libraries[need]
		if !ok {
			return fmt.Errorf("no package has the library %s", need)
		}
		found[inGuest] = library
		if err := addLibraries(found, libraries, library); err != nil {
			return err
		}
	}
	return nil
}
