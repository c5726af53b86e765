package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"github.com/shuntio/shunt/docs"
	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/control/controltest"
)

//go:generate go test -run ^TestDocumentIsFresh$ . -update

var update = flag.Bool("update", false, "write docs/openapi.yaml anew")

func TestDocumentIsFresh(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	made, err := generate(root)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "docs", "openapi.yaml")
	if *update {
		if err := os.WriteFile(file, made, documentMode); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(docs.OpenAPI), string(made)); diff != "" {
		t.Errorf("docs/openapi.yaml is stale, have -, want +; run go generate ./tools/control/api:\n%s", diff)
	}
}

// document is docs/openapi.yaml, as a reader of it that knows nothing of Go sees it.
func document(t *testing.T) map[string]any {
	t.Helper()
	var d map[string]any
	if err := yaml.Unmarshal(docs.OpenAPI, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func at(t *testing.T, v any, path ...string) any {
	t.Helper()
	for _, key := range path {
		m, is := v.(map[string]any)
		if !is || m[key] == nil {
			t.Fatalf("the document has no %s", strings.Join(path, " . "))
		}
		v = m[key]
	}
	return v
}

// socketServer runs the API on a fake engine that knows one object of each kind, and returns a client.
func socketServer(t *testing.T) *Client {
	t.Helper()
	c, err := config.Parse("test.yaml", []byte(`
uplinks: [{name: up0, interface: eth1, address: 192.0.2.1}]
networks: [{name: blue, uplink: up0, vni: 7, entries: [{mac: 52:54:00:00:00:02, ip: 10.0.0.2, vtep: 192.0.2.2}]}]
ports: [{name: p1, network: blue, socket: /run/p1.sock, mac: 52:54:00:00:00:01, acl: {rules: ["allow in icmp type 8"]}}]
volume-groups: [{name: gold, limits: {iops: 5}}]
volumes: [{name: disk1, socket: /run/v1.sock, source: "nbds://192.0.2.9/v1", volume-group: gold, tls: {ca: /ca}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	engine := &controltest.Engine{
		Table: func(string) ([]control.FDBEntry, error) {
			return []control.FDBEntry{{MAC: config.MAC{2}, Origin: control.FDBLearned, VTEP: netip.MustParseAddr("192.0.2.2"), Age: time.Second}}, nil
		},
		Counters: func() control.Stats {
			return control.Stats{At: time.Now(), Objects: []control.ObjectStats{{Kind: control.KindPort, Name: "p1",
				Counters: control.Counters{Drops: map[string]uint64{"no-route": 1}}},
				{Kind: control.KindVolume, Name: "disk1", Volume: &control.VolumeStats{Operations: []control.OperationStats{{Operation: "read"}}}}}}
		},
	}
	controller := control.New(engine, c, slog.New(slog.DiscardHandler))
	if _, err := controller.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := Listen(socket, "")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(controller, slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	client := NewClient(socket)
	t.Cleanup(func() {
		client.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-served); err != nil {
			t.Error(err)
		}
	})
	return client
}

// Every operation of the document is answered, every other method on its paths is not, and what it answers is as the document says.
func TestDocumentIsServed(t *testing.T) {
	c := socketServer(t)
	d := document(t)
	paths := at(t, d, "paths").(map[string]any)
	if len(paths) < 10 {
		t.Fatalf("%d paths", len(paths))
	}
	ask := func(method, path string) (int, []byte, http.Header) {
		r, err := c.send(t.Context(), method, path, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, body, r.Header
	}
	examples := map[string]string{"uplinks": "up0", "networks": "blue", "ports": "p1", "volumes": "disk1", "volume-groups": "gold"}
	answers := 0
	for path, operations := range paths {
		for _, method := range []string{"get", "put", "post", "delete", "patch"} {
			where := path
			for plural, name := range examples {
				where = strings.Replace(where, "/"+plural+"/{name}", "/"+plural+"/"+name, 1)
			}
			where = strings.NewReplacer("{name}", "unknown", "{id}", "77").Replace(where)
			op, known := operations.(map[string]any)[method].(map[string]any)
			if query := requiredQuery(op); len(query) > 0 {
				where += "?" + query.Encode()
			}
			if method == "delete" && known { // asked for what is not there, so that there is something for the others
				where = strings.NewReplacer("up0", "x", "blue", "x", "p1", "x", "disk1", "x", "gold", "x").Replace(where)
			}
			status, body, header := ask(strings.ToUpper(method), where)
			switch {
			case !known && status != http.StatusMethodNotAllowed:
				t.Errorf("%s %s is not in the document and answered with %d", method, path, status)
			case known && (status == http.StatusMethodNotAllowed || status == http.StatusInternalServerError || bytes.Contains(body, []byte("the API begins at"))):
				t.Errorf("%s %s is in the document and answered with %d %s", method, path, status, body)
			case known && method == "get":
				if status != http.StatusOK {
					t.Errorf("%s %s: %d %s", method, where, status, body)
				}
				media := header.Get("Content-Type")
				schema := at(t, op, "responses", "200", "content", media, "schema").(map[string]any)
				if media == "application/json" && len(schema) > 0 {
					validateText(t, d, schema, body, where)
					answers++
				}
			case known && status != http.StatusOK:
				validateText(t, d, at(t, d, "components", "schemas", "Error").(map[string]any), body, where)
				answers++
			}
		}
	}
	if answers < 20 {
		t.Errorf("only %d answers were held against the document", answers)
	}
	_, text, _ := ask(http.MethodGet, "/openapi.yaml")
	if !bytes.Equal(text, docs.OpenAPI) {
		t.Error("/openapi.yaml is not docs/openapi.yaml")
	}
	_, text, _ = ask(http.MethodGet, "/openapi.json")
	var asJSON map[string]any
	if err := json.Unmarshal(text, &asJSON); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(plain(d), plain(asJSON)); diff != "" {
		t.Errorf("the two documents differ: %s", diff)
	}
}

// requiredQuery is what an operation asks for, with values that make sense to the server.
func requiredQuery(op map[string]any) url.Values {
	values := url.Values{}
	for _, p := range slicesOf(op["parameters"]) {
		if q := p.(map[string]any); q["in"] == "query" && q["required"] == true {
			name := fmt.Sprint(q["name"])
			values.Set(name, map[string]string{"network": "blue", "direction": "in", "packet": "tcp 10.0.0.1:1234 > 10.0.0.2:80"}[name])
		}
	}
	return values
}

// plain levels the kinds of numbers that YAML and JSON are read as.
func plain(v any) any {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var out any
	if err := json.Unmarshal(text, &out); err != nil {
		return err
	}
	return out
}

func slicesOf(v any) []any {
	list, _ := v.([]any)
	return list
}

// Every field of the Go types is in the document, and every property of the document is a field: a value that has all fields is what the schema says,
// and lacks nothing that it says.
func TestDocumentHasEveryField(t *testing.T) {
	d := document(t)
	paths := at(t, d, "paths").(map[string]any)
	seen := map[string]bool{}
	check := func(value any, schema map[string]any, where string) {
		full := reflect.New(reflect.TypeOf(value)).Elem()
		populate(full)
		text, err := json.Marshal(full.Interface())
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatal(err)
		}
		k := checker{document: d, complete: true, seen: seen}
		k.check(v, schema, where)
		for _, p := range k.problems {
			t.Error(p)
		}
	}
	for _, r := range routes {
		op := at(t, paths, r.path, strings.ToLower(r.method)).(map[string]any)
		if r.takes != nil {
			check(r.takes, at(t, op, "requestBody", "content", "application/json", "schema").(map[string]any), r.id+" takes")
		}
		if r.gives != nil {
			check(r.gives, at(t, op, "responses", "200", "content", "application/json", "schema").(map[string]any), r.id+" gives")
		}
	}
	check(errorBody{}, at(t, d, "components", "schemas", "Error").(map[string]any), "an error")
	seen["Error"] = true
	for _, name := range slices.Sorted(maps.Keys(at(t, d, "components", "schemas").(map[string]any))) {
		if !seen[name] {
			t.Errorf("no operation has the schema %s", name)
		}
	}
	operations := 0
	for _, ops := range paths {
		operations += len(ops.(map[string]any))
	}
	if operations != len(routes) {
		t.Errorf("%d operations in the document, %d routes", operations, len(routes))
	}
}

// populate makes every field of a value other than zero.
func populate(v reflect.Value) {
	switch v.Type() {
	case reflect.TypeFor[time.Time]():
		v.Set(reflect.ValueOf(time.Unix(1, 0)))
		return
	case reflect.TypeFor[netip.Addr]():
		v.Set(reflect.ValueOf(netip.MustParseAddr("192.0.2.1")))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		populate(v.Elem())
	case reflect.Struct:
		for _, f := range v.Fields() {
			if f.CanSet() {
				populate(f)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		populate(v.Index(0))
	case reflect.Array:
		for i := range v.Len() {
			populate(v.Index(i))
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		populate(key)
		populate(value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(0.5)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	}
}

func validateText(t *testing.T, d, schema map[string]any, text []byte, where string) {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	k := checker{document: d, words: true}
	k.check(v, schema, where)
	for _, p := range k.problems {
		t.Error(p)
	}
}

// checker holds a JSON value against a schema of the document, as far as that uses JSON Schema.
type checker struct {
	document map[string]any
	complete bool // every property of the schema must be there
	words    bool // enumerations count
	seen     map[string]bool
	problems []string
}

func (k *checker) fail(where, format string, args ...any) {
	k.problems = append(k.problems, where+": "+fmt.Sprintf(format, args...))
}

func (k *checker) check(v any, schema map[string]any, where string) {
	if r, is := schema["$ref"].(string); is {
		name := strings.TrimPrefix(r, "#/components/schemas/")
		all, _ := k.document["components"].(map[string]any)["schemas"].(map[string]any)
		to, known := all[name].(map[string]any)
		if !known {
			k.fail(where, "%s leads nowhere", r)
			return
		}
		if k.seen != nil {
			k.seen[name] = true
		}
		k.check(v, to, where)
		return
	}
	if list, is := schema["oneOf"].([]any); is {
		for _, s := range list {
			one := checker{document: k.document, complete: k.complete, words: k.words, seen: k.seen}
			if one.check(v, s.(map[string]any), where); len(one.problems) == 0 {
				return
			}
		}
		k.fail(where, "%v is none of the alternatives", v)
		return
	}
	if c, is := schema["const"]; is && c != v {
		k.fail(where, "%v is not %v", v, c)
	}
	switch schema["type"] {
	case "object":
		k.object(v, schema, where)
	case "array":
		list, is := v.([]any)
		if !is {
			k.fail(where, "%v is no list", v)
		}
		for i, item := range list {
			k.check(item, schema["items"].(map[string]any), fmt.Sprintf("%s[%d]", where, i))
		}
	case "string":
		text, is := v.(string)
		if words, listed := schema["enum"].([]any); !is || listed && k.words && !slices.Contains(words, any(text)) {
			k.fail(where, "%v is none of %v", v, words)
		}
	case "integer", "number":
		if n, is := v.(float64); !is || schema["type"] == "integer" && n != float64(int64(n)) {
			k.fail(where, "%v is no %v", v, schema["type"])
		}
	case "boolean":
		if _, is := v.(bool); !is {
			k.fail(where, "%v is neither true nor false", v)
		}
	case nil:
	default:
		k.fail(where, "the document has the type %v", schema["type"])
	}
}

func (k *checker) object(v any, schema map[string]any, where string) {
	m, is := v.(map[string]any)
	if !is {
		k.fail(where, "%v is no object", v)
		return
	}
	properties, _ := schema["properties"].(map[string]any)
	values, free := schema["additionalProperties"].(map[string]any)
	for name, value := range m {
		s, known := properties[name].(map[string]any)
		switch {
		case known:
			k.check(value, s, where+"."+name)
		case free:
			k.check(value, values, where+"."+name)
		default:
			k.fail(where, "%s is not in the document", name)
		}
	}
	for name := range properties {
		if _, there := m[name]; !there && k.complete {
			k.fail(where, "no Go field is %s", name)
		}
	}
	for _, name := range slicesOf(schema["required"]) {
		if _, there := m[name.(string)]; !there {
			k.fail(where, "%s is missing", name)
		}
	}
}
