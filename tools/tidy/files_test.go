package tidy

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// maxLines is where a file has become two: about 600, with some grace.
const maxLines = 640

func TestFileLengths(t *testing.T) {
	for _, f := range moduleFiles(t) {
		if lines := f.fset.File(f.ast.FileStart).LineCount(); lines > maxLines && !f.generated() {
			t.Errorf("%s has %d lines; split it below %d", f.name, lines, maxLines)
		}
	}
}

// dual is the licence of what is loaded into the kernel: GPL for its helpers, BSD so
// that others may build on it.
var dual = regexp.MustCompile(`^(//|/\*) SPDX-License-Identifier: (\(?BSD-2-Clause OR GPL-2\.0-only\)?|\(?GPL-2\.0-only OR BSD-2-Clause\)?)( \*/)?\n`)

func TestBPFLicence(t *testing.T) {
	root, err := root()
	if err != nil {
		t.Fatal(err)
	}
	all, err := names()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		ext := path.Ext(name)
		if ext != ".c" && ext != ".h" || !inside(name, "bpf") && !strings.HasSuffix(name, ".bpf.c") {
			continue
		}
		src, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if !dual.Match(src) {
			t.Errorf("%s does not begin with // SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)", name)
		}
	}
}

func TestBPFLicenceRule(t *testing.T) {
	for src, want := range map[string]bool{
		"// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)\n":  true,
		"/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */\n": true,
		"// SPDX-License-Identifier: GPL-2.0-only\n":                    false,
		"#include <linux/bpf.h>\n":                                      false,
	} {
		if dual.MatchString(src) != want {
			t.Errorf("%q: want %v", src, want)
		}
	}
}
