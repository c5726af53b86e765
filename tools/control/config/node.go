package config

import "fmt"

type kind uint8

const (
	kindNull kind = iota
	kindBool
	kindInteger
	kindFloat
	kindString
	kindList
	kindMap
)

var kindNames = [...]string{"nothing", "a boolean", "a number", "a number", "a string", "a list", "a mapping"}

func (k kind) String() string { return kindNames[k] }

// position is a place in a document, both from 1.
type position struct{ line, column int }

// node is a value of a document and where it stands: what YAML and JSON have in common, and nothing else.
type node struct {
	position
	kind  kind
	text  string  // of a scalar, as it was written
	items []*node // of a list
	keys  []key   // of a map, in their order, repeated ones too
}

type key struct {
	position
	name  string
	value *node
}

func (n *node) problem(format string, args ...any) *Problem {
	return &Problem{Line: n.line, Column: n.column, Reason: fmt.Sprintf(format, args...)}
}

// maxDepth bounds nesting before a parser recurses on it. The configuration needs five.
const maxDepth = 32
