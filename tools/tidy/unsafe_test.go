package tidy

import (
	"go/ast"
	"path"
	"slices"
	"strings"
	"testing"
)

// fenced are the packages that may use unsafe, in files that say so by their name.
var fenced = []string{
	"dataplane/shm", "dataplane/guestmem", "dataplane/virtq", "dataplane/xsk", "dataplane/uring",
}

// unsafeFence finds what escapes Go's memory safety outside the fence: unsafe itself,
// cgo, and the two ways to have it without importing it.
func unsafeFence(f *file) []string {
	if slices.Contains(fenced, f.dir()) && unsafeName(f.name) {
		return nil
	}
	const where = "belongs into a *_unsafe.go file of dataplane/{shm,guestmem,virtq,xsk,uring}"
	var found []string
	for p, spec := range f.imports() {
		if p == "unsafe" || p == "C" {
			found = append(found, f.at(spec, "import %q %s", p, where))
		}
	}
	for _, group := range f.ast.Comments {
		for _, c := range group.List {
			if strings.HasPrefix(c.Text, "//go:linkname") {
				found = append(found, f.at(c, "%s %s", c.Text, where))
			}
		}
	}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == "reflect" &&
				(sel.Sel.Name == "SliceHeader" || sel.Sel.Name == "StringHeader") {
				found = append(found, f.at(n, "reflect.%s %s", sel.Sel.Name, where))
			}
		}
		return true
	})
	return found
}

func unsafeName(name string) bool {
	base := strings.TrimSuffix(strings.TrimSuffix(path.Base(name), ".go"), "_test")
	// _unsafe, or _unsafe_amd64 where the build needs the machine's name last
	return strings.HasSuffix(base, "_unsafe") || strings.Contains(base, "_unsafe_")
}

func TestUnsafeFence(t *testing.T) {
	judge(t, func(*file) bool { return true }, unsafeFence)
}

func TestUnsafeFenceRule(t *testing.T) {
	const uses = "package p\nimport _ \"unsafe\"\n"
	testRule(t, unsafeFence, []sample{
		{"dataplane/shm/view_unsafe.go", uses, ""},
		{"dataplane/shm/view_unsafe_test.go", uses, ""},
		{"dataplane/shm/view_unsafe_arm64.go", uses, ""},
		{"dataplane/shm/view.go", uses, `import "unsafe"`},
		{"dataplane/vnet/view_unsafe.go", uses, `import "unsafe"`},
		{"dataplane/shm/sub/view_unsafe.go", uses, `import "unsafe"`},
		{"vxlan/a_test.go", uses, `import "unsafe"`},
		{"vxlan/a.go", "package p\nimport \"C\"\n", `import "C"`},
		{"vxlan/a.go", "package p\n\n//go:linkname now runtime.nanotime\nfunc now() int64\n", "go:linkname"},
		{"vxlan/a.go", "package p\nimport \"reflect\"\nvar h reflect.SliceHeader\n", "SliceHeader"},
		{"vxlan/a.go", "package p\n\n// Not unsafe, only said so.\nvar s = \"unsafe\"\n", ""},
	})
}

// Assembly is as unsafe as unsafe: it stays in shm, behind Go declarations.
func TestAssemblyInShmOnly(t *testing.T) {
	all, err := names()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if path.Ext(name) == ".s" && path.Dir(name) != "dataplane/shm" {
			t.Errorf("%s: assembly belongs into dataplane/shm", name)
		}
	}
}
