package tidy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Each module that we asked for has its row, with the version that is in use.
func TestDependenciesHaveReasons(t *testing.T) {
	dir, err := root()
	if err != nil {
		t.Fatal(err)
	}
	text := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	rows := strings.Split(text("docs/dependencies.md"), "\n")
	asked := regexp.MustCompile(`(?m)^\t(\S+?)(?:/v\d+)? (v\S+)$`).FindAllStringSubmatch(text("go.mod"), -1)
	if len(asked) < 10 {
		t.Fatalf("go.mod asks for %d modules: has it another form?", len(asked))
	}
	for _, m := range asked {
		name, version := strings.TrimPrefix(m[1], "github.com/"), m[2]
		if !containsRow(rows, "| ["+name+"](", "| "+version+",") {
			t.Errorf("docs/dependencies.md has no row of %s %s", name, version)
		}
	}
}

func containsRow(rows []string, begin, has string) bool {
	for _, row := range rows {
		if strings.HasPrefix(row, begin) && strings.Contains(row, has) {
			return true
		}
	}
	return false
}
