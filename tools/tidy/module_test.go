package tidy

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const modulePath = "github.com/shuntio/shunt"

// file is one Go source file of the module.
type file struct {
	name string // below the module's root, with slashes
	fset *token.FileSet
	ast  *ast.File
}

func (f *file) dir() string     { return path.Dir(f.name) }
func (f *file) test() bool      { return strings.HasSuffix(f.name, "_test.go") }
func (f *file) generated() bool { return ast.IsGenerated(f.ast) }

// at returns a finding with the position of a node.
func (f *file) at(n ast.Node, format string, args ...any) string {
	return fmt.Sprintf("%s:%d: %s", f.name, f.fset.Position(n.Pos()).Line, fmt.Sprintf(format, args...))
}

// imports returns the file's import specs by path.
func (f *file) imports() map[string]*ast.ImportSpec {
	specs := make(map[string]*ast.ImportSpec, len(f.ast.Imports))
	for _, spec := range f.ast.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err == nil {
			specs[p] = spec
		}
	}
	return specs
}

// root is the module's directory: the nearest one above with a go.mod.
var root = sync.OnceValues(func() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod above the working directory")
		}
		dir = parent
	}
})

// names are the files of the module below its root. Nested modules, hidden folders
// and testdata are not the module's.
var names = sync.OnceValues(func() ([]string, error) {
	root, err := root()
	if err != nil {
		return nil, err
	}
	var names []string
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			_, nested := os.Stat(filepath.Join(p, "go.mod"))
			if p != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || nested == nil) {
				return filepath.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(root, p)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	return names, err
})

// files are all Go files of the module, parsed.
var files = sync.OnceValues(func() ([]*file, error) {
	root, err := root()
	if err != nil {
		return nil, err
	}
	names, err := names()
	if err != nil {
		return nil, err
	}
	var files []*file
	fset := token.NewFileSet()
	for _, name := range names {
		if path.Ext(name) != ".go" {
			continue
		}
		src, err := os.ReadFile(filepath.Join(root, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since it was listed
		}
		if err != nil {
			return nil, err
		}
		f, err := parse(fset, name, string(src))
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
})

func parse(fset *token.FileSet, name, src string) (*file, error) {
	tree, err := parser.ParseFile(fset, name, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	return &file{name: name, fset: fset, ast: tree}, nil
}

// moduleFiles returns the module's files for a rule to judge.
func moduleFiles(t *testing.T) []*file {
	t.Helper()
	all, err := files()
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("the module has no Go files")
	}
	return all
}

// judge applies a rule to the files of the module that pick chooses.
func judge(t *testing.T, pick func(*file) bool, rule func(*file) []string) {
	t.Helper()
	judged := 0
	for _, f := range moduleFiles(t) {
		if !pick(f) {
			continue
		}
		judged++
		for _, finding := range rule(f) {
			t.Error(finding)
		}
	}
	if judged == 0 {
		t.Error("the rule judged no file")
	}
}

// sample is a file for the test of a rule.
type sample struct {
	name string
	src  string
	want string // part of the one finding; empty: none
}

func testRule(t *testing.T, rule func(*file) []string, samples []sample) {
	t.Helper()
	for _, s := range samples {
		f, err := parse(token.NewFileSet(), s.name, s.src)
		if err != nil {
			t.Fatal(err)
		}
		found := rule(f)
		switch {
		case s.want == "" && len(found) > 0:
			t.Errorf("%s: found %q in\n%s", s.name, found, s.src)
		case s.want != "" && (len(found) != 1 || !strings.Contains(found[0], s.want)):
			t.Errorf("%s: found %q, want one finding with %q in\n%s", s.name, found, s.want, s.src)
		}
	}
}
