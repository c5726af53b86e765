package tidy

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/shuntio/shunt/tools/control/config"
)

var yamlBlock = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")

// What the README tells people to write is a configuration that the daemon takes.
func TestReadmeConfiguration(t *testing.T) {
	root, err := root()
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := yamlBlock.FindAllSubmatch(readme, -1)
	if len(blocks) == 0 {
		t.Fatal("README.md has no configuration")
	}
	for _, block := range blocks {
		if _, err := config.Parse("README.md", block[1]); err != nil {
			t.Errorf("%v in\n%s", err, block[1])
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

// Links between documents lead somewhere.
func TestDocumentLinks(t *testing.T) {
	root, err := root()
	if err != nil {
		t.Fatal(err)
	}
	all, err := names()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if filepath.Ext(name) != ".md" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllSubmatch(text, -1) {
			target := filepath.Join(root, filepath.Dir(name), string(m[1]))
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", name, m[1])
			}
		}
	}
}
