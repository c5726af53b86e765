package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing wrong with a document.
type Problem struct {
	Line   int    `json:"line,omitempty"` // from 1; 0: not known
	Column int    `json:"column,omitempty"`
	Path   string `json:"path,omitempty"` // of the value, as ports[0].mac
	Reason string `json:"reason"`         // one sentence
}

// maxProblems is how many are told of one document. A file of another kind, or a large body, has one in every few bytes, and each is a hundred times
// as long as those.
const maxProblems = 100

// Error is what is wrong with a document, in the order of its lines: everything, or where that is too much, the beginning.
type Error struct {
	File     string // empty: not a file
	Problems []Problem
}

func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.where(e.File) + p.Reason
	}
	return strings.Join(lines, "\n")
}

// where renders file:line:column as compilers do, so that editors can jump there.
func (p Problem) where(file string) string {
	var b strings.Builder
	if file != "" {
		b.WriteString(file)
		b.WriteByte(':')
	}
	if p.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", p.Line, p.Column)
	}
	if p.Path != "" {
		b.WriteString(" " + p.Path + ":")
	}
	if b.Len() == 0 {
		return ""
	}
	return strings.TrimPrefix(b.String(), " ") + " "
}

// enough reports whether no more problems need to be looked into: there is one that failure leaves out.
func enough(problems []Problem) bool { return len(problems) > maxProblems }

// failure returns the problems as an error, nil for none.
func failure(file string, problems []Problem) error {
	if len(problems) == 0 {
		return nil
	}
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if enough(problems) {
		problems = append(problems[:maxProblems], Problem{Reason: fmt.Sprintf("there is more: these are the first %d problems", maxProblems)})
	}
	return &Error{File: file, Problems: problems}
}
