package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
)

// positions remembers where the value of each path stands. A path that is missing was not given.
type positions map[string]position

func decode(text []byte, to any, read func([]byte) (*node, *Problem)) (positions, []Problem) {
	if len(text) > MaxDocument {
		return nil, []Problem{{Reason: fmt.Sprintf("the document is larger than %d MiB, the most that is read: shorten it", MaxDocument>>20)}}
	}
	root, problem := read(text)
	if problem != nil {
		return nil, []Problem{*problem}
	}
	d := &decoder{at: positions{}}
	if root == nil {
		root = &node{kind: kindMap, position: position{1, 1}}
	}
	d.value(root, to, "")
	return d.at, d.problems
}

// decoder carries a tree into Go values. It goes on after a problem, to report more than one.
type decoder struct {
	at       positions
	problems []Problem
}

// nodeDecoder is a type that reads the tree itself, as it takes more than one kind of node.
type nodeDecoder interface {
	decodeNode(d *decoder, n *node, path string)
}

func (d *decoder) fail(path string, n *node, err error) {
	if enough(d.problems) {
		return
	}
	d.problems = append(d.problems, Problem{Line: n.line, Column: n.column, Path: path, Reason: err.Error()})
}

// aList is what is wanted where mappings and scalars are refused.
const aList = "a list"

func (d *decoder) want(path string, n *node, wanted string) {
	reason := fmt.Sprintf("this is %s: it must be %s", n.kind, wanted)
	switch n.kind {
	case kindMap:
		if wanted == aList {
			reason += ", with a dash before each entry"
		} else { // YAML's flow style finds one in {flood: [fd00::2]}
			reason += "; put a value that holds colons in quotes"
		}
	case kindNull:
		reason = "the key has no value: give one, or remove the key"
	}
	d.fail(path, n, errors.New(reason))
}

// value decodes n into what to points to.
func (d *decoder) value(n *node, to any, path string) {
	d.at[path] = n.position
	switch to := to.(type) {
	case nodeDecoder:
		to.decodeNode(d, n, path)
		return
	case encoding.TextUnmarshaler:
		d.text(n, to, path)
		return
	}
	switch v := reflect.ValueOf(to).Elem(); v.Kind() {
	case reflect.Struct:
		d.mapping(n, v, path)
	case reflect.Slice:
		d.list(n, v, path)
	case reflect.Pointer: // absent is something else than empty
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Interface(), path)
	case reflect.String:
		if n.kind != kindString {
			wanted := "a string"
			if n.text != "" {
				wanted += "; put it in quotes"
			}
			d.want(path, n, wanted)
			return
		}
		v.SetString(n.text)
	case reflect.Bool:
		if n.kind != kindBool || n.text != "true" && n.text != "false" {
			d.want(path, n, "true or false")
			return
		}
		v.SetBool(n.text == "true")
	default:
		d.number(n, v, path)
	}
}

func (d *decoder) text(n *node, to encoding.TextUnmarshaler, path string) {
	if n.kind != kindString && n.kind != kindInteger && n.kind != kindFloat { // 0660 and 10e1 are numbers to YAML
		d.want(path, n, "a string")
		return
	}
	if n.text == "" {
		d.fail(path, n, errors.New("this is empty: give a value, or remove the key"))
		return
	}
	if err := to.UnmarshalText([]byte(n.text)); err != nil {
		if _, addr := to.(interface{ IsMulticast() bool }); addr { // netip.Addr, whose own words are for programmers
			if _, mac := to.(*MAC); !mac {
				err = fmt.Errorf("%s is not an IP address: write it as 192.0.2.1 or 2001:db8::1, without a prefix length", quote(n.text))
			}
		}
		d.fail(path, n, err)
	}
}

func (d *decoder) number(n *node, v reflect.Value, path string) {
	if n.kind != kindInteger {
		d.want(path, n, "a whole number")
		return
	}
	if digits := strings.TrimPrefix(n.text, "-"); !isNumber(digits) || len(digits) > 1 && digits[0] == '0' {
		d.fail(path, n, fmt.Errorf("%s is not a decimal number: write it without sign, prefix, underscore or leading zero",
			quote(n.text)))
		return
	}
	var err error
	if v.CanUint() {
		var u uint64
		u, err = strconv.ParseUint(n.text, 10, v.Type().Bits())
		v.SetUint(u)
	} else {
		var i int64
		i, err = strconv.ParseInt(n.text, 10, 32)
		v.SetInt(i)
	}
	if err != nil {
		most := uint64(1<<31 - 1)
		if v.CanUint() {
			most = 1<<v.Type().Bits() - 1
		}
		d.fail(path, n, fmt.Errorf("%s is out of range: give at least 0 and at most %d", short(n.text), most))
	}
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func (d *decoder) list(n *node, v reflect.Value, path string) {
	switch n.kind {
	case kindNull: // "ports:" with every entry commented out
		return
	case kindList:
	default:
		d.want(path, n, aList)
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.items), len(n.items)))
	for i, item := range n.items {
		d.value(item, v.Index(i).Addr().Interface(), path+"["+strconv.Itoa(i)+"]")
	}
}

func (d *decoder) mapping(n *node, v reflect.Value, path string) {
	switch n.kind {
	case kindMap:
	case kindNull:
		if path == "workers" || path == "control" { // as for lists; an element of a list must be something
			return
		}
		fallthrough
	default:
		d.want(path, n, "a mapping of keys to values")
		return
	}
	switch o := v.Addr().Interface().(type) { // the defaults that cannot be told from a value that was given
	case *Network:
		o.Learning, o.Answer = true, true
	case *Port:
		o.AntiSpoof, o.Coalesce = true, true
		o.Limits.Flood.PPS = DefaultFlood
	}
	fields := fieldsOf(v.Type())
	first := map[string]position{}
	for _, k := range n.keys {
		inner := strings.TrimPrefix(path+"."+k.name, ".")
		at := &node{position: k.position}
		if was, twice := first[k.name]; twice {
			d.fail(inner, at, fmt.Errorf("the key was given before, in line %d: keep one", was.line))
			continue
		}
		first[k.name] = k.position
		i, known := fields.index[k.name]
		if !known {
			d.fail(path, at, unknownKey(k.name, v.Type(), fields))
			continue
		}
		d.value(k.value, v.Field(i).Addr().Interface(), inner)
	}
}

// later says in which words a key is refused that the design has and this version has not.
var later = map[reflect.Type]map[string]string{
	reflect.TypeFor[Config](): {
		"rdma": "this version has no RDMA, remove it",
	},
}

func unknownKey(name string, t reflect.Type, f fields) error {
	if why, ok := later[t][name]; ok {
		return fmt.Errorf("the key %s is not supported: %s", name, why)
	}
	return fmt.Errorf("unknown key %s: the keys here are %s", quote(name), strings.Join(f.names, ", "))
}

type fields struct {
	names []string
	index map[string]int
}

// known has the fields of types met before: a document has thousands of objects, of a few types.
var known sync.Map // reflect.Type -> fields

func fieldsOf(t reflect.Type) fields {
	if f, met := known.Load(t); met {
		return f.(fields)
	}
	f := fields{index: map[string]int{}}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		f.names = append(f.names, name)
		f.index[name] = i
	}
	known.Store(t, f)
	return f
}
