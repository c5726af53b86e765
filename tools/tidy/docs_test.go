package tidy

import (
	"go/ast"
	"go/token"
	"path"
	"strings"
	"testing"
)

// wellKnown are methods whose interface in the standard library documents them.
var wellKnown = map[string]bool{
	"String": true, "GoString": true, "Error": true, "Unwrap": true, "Is": true, "As": true,
	"Len": true, "Less": true, "Swap": true, "Push": false,
	"MarshalJSON": true, "UnmarshalJSON": true, "MarshalText": true, "UnmarshalText": true,
	"Read": true, "Write": true, "LogValue": true,
}

// undocumented finds exported identifiers without a comment: types, functions,
// methods of exported types, constants and variables (their group's comment counts).
func undocumented(f *file) []string {
	var found []string
	report := func(id *ast.Ident) { found = append(found, f.at(id, "exported %s has no comment", id.Name)) }
	for _, decl := range f.ast.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Doc == nil && d.Name.IsExported() && exportedReceiver(d) && (d.Recv == nil || !wellKnown[d.Name.Name]) {
				report(d.Name)
			}
		case *ast.GenDecl:
			if d.Tok == token.IMPORT || d.Doc != nil && d.Tok != token.TYPE {
				continue
			}
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					if s.Name.IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
						report(s.Name)
					}
				case *ast.ValueSpec:
					for _, id := range s.Names {
						if id.IsExported() && s.Doc == nil && s.Comment == nil {
							report(id)
						}
					}
				}
			}
		}
	}
	return found
}

// exportedReceiver reports whether d is a function or a method of an exported type.
func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}

func TestExportedIsDocumented(t *testing.T) {
	judge(t, func(f *file) bool { return !f.test() && !f.generated() && f.ast.Name.Name != "main" }, undocumented)
}

func TestExportedIsDocumentedRule(t *testing.T) {
	testRule(t, undocumented, []sample{
		{"a.go", "package p\n// F does.\nfunc F() {}\nfunc f() {}\n", ""},
		{"a.go", "package p\nfunc F() {}\n", "exported F"},
		{"a.go", "package p\ntype T struct{}\n", "exported T"},
		{"a.go", "package p\ntype t struct{}\nfunc (t) M() {}\n", ""},
		{"a.go", "package p\n// T is.\ntype T[K any] struct{}\nfunc (*T[K]) M() {}\n", "exported M"},
		{"a.go", "package p\n// T is.\ntype T int\nfunc (T) String() string { return \"\" }\n", ""},
		{"a.go", "package p\nconst (\n\tA = 1 // the first\n\tB = 2\n)\n", "exported B"},
		{"a.go", "package p\n// Flags.\nconst (\n\tA = 1\n\tB = 2\n)\n", ""},
		{"a.go", "package p\nvar ErrFull error\n", "exported ErrFull"},
	})
}

// Every package explains itself in one place.
func TestPackageComments(t *testing.T) {
	comments := map[string][]string{} // folder -> files with a package comment
	for _, f := range moduleFiles(t) {
		if f.test() {
			continue
		}
		dir := f.dir()
		if _, ok := comments[dir]; !ok {
			comments[dir] = nil
		}
		if f.ast.Doc == nil || f.generated() {
			continue
		}
		comments[dir] = append(comments[dir], f.name)
		want := "Package " + f.ast.Name.Name + " "
		if f.ast.Name.Name == "main" {
			want = path.Base(dir)
			want = strings.ToUpper(want[:1]) + want[1:]
		}
		if text := f.ast.Doc.Text(); !strings.HasPrefix(text, want) {
			t.Errorf("%s: the package comment does not begin with %q", f.name, want)
		}
	}
	for dir, in := range comments {
		if len(in) != 1 {
			t.Errorf("%s: the package comment belongs into one file, it is in %d %v", dir, len(in), in)
		}
	}
}
