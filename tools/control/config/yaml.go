package config

import (
	"errors"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// readYAML makes a tree of a YAML document. A nil node is an empty document.
func readYAML(text []byte) (n *node, problem *Problem) {
	if p := tooDeep(text); p != nil {
		return nil, p
	}
	defer func() { // the parser is not ours, and a reload must not end the daemon
		if recover() != nil {
			n, problem = nil, &Problem{Reason: "this is not YAML: the parser gave up on it"}
		}
	}()
	file, err := parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		p := &Problem{Reason: "this is not YAML: " + err.Error()}
		if syntax := (*yaml.SyntaxError)(nil); errors.As(err, &syntax) {
			p.Reason = "this is not YAML: " + strings.ReplaceAll(syntax.Message, "'\t' that cannot start any token", "tab: indent with spaces")
			if at := syntax.Token; at != nil && at.Position != nil {
				p.Line, p.Column = at.Position.Line, at.Position.Column
			}
		}
		return nil, p
	}
	var body ast.Node
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil:
		case body != nil:
			at := nodePosition(doc.Body)
			return nil, &Problem{Line: at.line, Column: at.column,
				Reason: "a second document begins here: a configuration is one, remove the others"}
		default:
			body = doc.Body
		}
	}
	if body == nil {
		return nil, nil
	}
	return fromYAML(body, 0)
}

func fromYAML(from ast.Node, depth int) (*node, *Problem) {
	n := &node{position: nodePosition(from)}
	if depth > maxDepth {
		return nil, n.problem("this is nested too deeply")
	}
	switch from := from.(type) {
	case *ast.NullNode:
		n.kind = kindNull
	case *ast.BoolNode:
		n.kind, n.text = kindBool, from.Token.Value
	case *ast.IntegerNode:
		n.kind, n.text = kindInteger, from.Token.Value
	case *ast.FloatNode:
		n.kind, n.text = kindFloat, from.Token.Value
	case *ast.InfinityNode:
		n.kind, n.text = kindFloat, from.Token.Value
	case *ast.NanNode:
		n.kind, n.text = kindFloat, from.Token.Value
	case *ast.StringNode:
		n.kind, n.text = kindString, from.Value
		if from.Token.Type == token.StringType && isNumber(from.Value) { // as 089 or 2^64, which the parser gives up on
			n.kind = kindInteger
		}
	case *ast.LiteralNode:
		n.kind, n.text = kindString, from.Value.Value
	case *ast.SequenceNode:
		n.kind = kindList
		for _, item := range from.Values {
			child, p := fromYAML(item, depth+1)
			if p != nil {
				return nil, p
			}
			n.items = append(n.items, child)
		}
	case *ast.MappingNode:
		n.kind = kindMap
		for _, pair := range from.Values {
			if p := n.pair(pair, depth); p != nil {
				return nil, p
			}
		}
	case *ast.MappingValueNode:
		n.kind = kindMap
		if p := n.pair(from, depth); p != nil {
			return nil, p
		}
	default: // *ast.AnchorNode, *ast.AliasNode, *ast.TagNode and what else YAML has
		return nil, n.problem("this uses a feature of YAML (%s) that a configuration does without: write the value itself",
			from.Type())
	}
	return n, nil
}

// pair adds a key and its value to the map n.
func (n *node) pair(pair *ast.MappingValueNode, depth int) *Problem {
	name, ok := pair.Key.(*ast.StringNode)
	if !ok {
		at := node{position: nodePosition(pair.Key)}
		return at.problem("a key must be a plain word; put a value that holds colons in quotes")
	}
	child, p := fromYAML(pair.Value, depth+1)
	if p != nil {
		return p
	}
	if child.kind == kindNull {
		child.position = nodePosition(name) // nothing stands anywhere else
	}
	n.keys = append(n.keys, key{position: nodePosition(name), name: name.Value, value: child})
	return nil
}

// nodePosition finds where a value begins. A block mapping's own token is its first colon, so its first key is asked.
func nodePosition(n ast.Node) position {
	switch m := n.(type) {
	case *ast.MappingNode:
		if !m.IsFlowStyle && len(m.Values) > 0 {
			return nodePosition(m.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return nodePosition(m.Key)
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return position{t.Position.Line, t.Position.Column}
	}
	return position{}
}

// tooDeep looks for nesting that the parser would recurse on, in time that grows with the square of the depth: open
// brackets, and runs of "- " in one line. It counts those in strings and comments as well, which is harmless at this
// bound.
func tooDeep(text []byte) *Problem {
	line, column, open, dashes := 1, 0, 0, 0
	for i, c := range text {
		column++
		switch c {
		case '[', '{':
			open++
		case ']', '}':
			open = max(open-1, 0)
		case '-', '?', ':':
			if i+1 == len(text) || text[i+1] == ' ' || text[i+1] == '\t' {
				dashes++
			}
		case '\n':
			line, column, dashes = line+1, 0, 0
		}
		if open > maxDepth || dashes > 4*maxDepth {
			return &Problem{Line: line, Column: column, Reason: "this is nested too deeply"}
		}
	}
	return nil
}
