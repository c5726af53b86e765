package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// readJSON makes a tree of a JSON document. A nil node is an empty document.
func readJSON(text []byte) (*node, *Problem) {
	r := jsonReader{text: text, dec: json.NewDecoder(bytes.NewReader(text))}
	r.dec.UseNumber()
	n, err := r.value(0)
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err == nil {
		r.skip()
		if _, err = r.dec.Token(); errors.Is(err, io.EOF) {
			return n, nil
		}
		err = errors.New("something follows the document")
	}
	at := r.position()
	return nil, &Problem{Line: at.line, Column: at.column, Reason: "this is not JSON: " + err.Error()}
}

// jsonReader reads tokens and keeps where each began, which encoding/json knows of their ends only.
type jsonReader struct {
	text  []byte
	dec   *json.Decoder
	begin int // offset of the last token
	seen  int // offset up to which line and column were counted
	at    position
}

func (r *jsonReader) skip() {
	r.begin = int(r.dec.InputOffset())
	for r.begin < len(r.text) && bytes.IndexByte([]byte(" \t\r\n,:"), r.text[r.begin]) >= 0 {
		r.begin++
	}
}

func (r *jsonReader) position() position {
	if r.at.line == 0 {
		r.at = position{1, 1}
	}
	for _, c := range r.text[r.seen:r.begin] {
		switch {
		case c == '\n':
			r.at = position{r.at.line + 1, 1}
		case utf8.RuneStart(c):
			r.at.column++
		}
	}
	r.seen = r.begin
	return r.at
}

func (r *jsonReader) value(depth int) (*node, error) {
	r.skip()
	token, err := r.dec.Token()
	if err != nil {
		if depth > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if depth > maxDepth {
		return nil, errors.New("it is nested too deeply")
	}
	n := &node{position: r.position()}
	switch token := token.(type) {
	case nil:
		n.kind = kindNull
	case bool:
		n.kind, n.text = kindBool, fmt.Sprint(token)
	case json.Number:
		n.kind, n.text = kindInteger, token.String()
		if bytes.ContainsAny([]byte(n.text), ".eE") {
			n.kind = kindFloat
		}
	case string:
		n.kind, n.text = kindString, token
	case json.Delim:
		return n, r.fill(n, token, depth)
	}
	return n, nil
}

// fill reads the rest of a list or map, of which the opening bracket was read.
func (r *jsonReader) fill(n *node, open json.Delim, depth int) error {
	n.kind = kindList
	if open == '{' {
		n.kind = kindMap
	}
	for r.dec.More() {
		var k key
		if n.kind == kindMap {
			r.skip()
			token, err := r.dec.Token()
			if err != nil {
				return err
			}
			k.name, k.position = token.(string), r.position() // encoding/json lets nothing else be a key
		}
		child, err := r.value(depth + 1)
		if err != nil {
			return err
		}
		if n.kind == kindList {
			n.items = append(n.items, child)
			continue
		}
		k.value = child
		n.keys = append(n.keys, k)
	}
	r.skip()
	_, err := r.dec.Token() // the closing bracket
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
