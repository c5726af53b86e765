package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/shuntio/shunt/vxlan/acl"
)

// TestDocumented holds docs/configuration.md to the types: every key is in a table, and its example is good and has
// every key but the alternatives.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```yaml\n")
	example, tables, found := strings.Cut(rest, "```\n")
	if !found {
		t.Fatal("no example")
	}
	if _, err := Parse("docs/configuration.md", []byte(example)); err != nil {
		t.Error(err)
	}
	section := map[reflect.Type]string{}
	for _, s := range strings.Split(tables, "\n## ")[1:] {
		for _, of := range []struct {
			heading string
			types   []reflect.Type
		}{
			{"`workers`", []reflect.Type{reflect.TypeFor[Workers]()}},
			{"`control`", []reflect.Type{reflect.TypeFor[Control]()}},
			{"`uplinks`", []reflect.Type{reflect.TypeFor[Uplink]()}},
			{"`networks`", []reflect.Type{reflect.TypeFor[Network](), reflect.TypeFor[Entry]()}},
			{"`ports`", []reflect.Type{reflect.TypeFor[Port](), reflect.TypeFor[Limits](), reflect.TypeFor[Limit](), reflect.TypeFor[FloodLimit](), reflect.TypeFor[acl.Policy]()}},
			{"`volumes`", []reflect.Type{reflect.TypeFor[Volume](), reflect.TypeFor[VolumeGroup](), reflect.TypeFor[VolumeLimits](), reflect.TypeFor[TLS](), reflect.TypeFor[Digests]()}},
		} {
			if strings.HasPrefix(s, of.heading) {
				for _, typ := range of.types {
					section[typ] = s
				}
			}
		}
	}
	if len(section) != 15 {
		t.Fatalf("%d of 15 types have a section", len(section))
	}
	for typ, s := range section {
		for _, key := range fieldsOf(typ).names {
			if !strings.Contains(s, "`"+key+"`") {
				t.Errorf("%s: the key %s is not documented", typ, key)
			}
			if !strings.Contains(example, key+":") && key != "vhost-user" && key != "queues" {
				t.Errorf("%s: the key %s is not in the example", typ, key)
			}
		}
	}
}
