package config

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// FuzzParse gives the decoder arbitrary YAML. What it takes must come back the same from the API; what it refuses must
// be told in whole, single-line sentences.
func FuzzParse(f *testing.F) {
	example, err := os.ReadFile(filepath.Join("testdata", "example.yaml"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Parse("f", text)
		judge(t, c, err)
	})
}

// FuzzParseJSON does the same for request bodies.
func FuzzParseJSON(f *testing.F) {
	example, err := os.ReadFile(filepath.Join("testdata", "example.yaml"))
	if err != nil {
		f.Fatal(err)
	}
	c, err := Parse("f", example)
	if err != nil {
		f.Fatal(err)
	}
	body, err := json.Marshal(c)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := ParseJSON(text)
		judge(t, c, err)
	})
}

func judge(t *testing.T, c *Config, err error) {
	if err != nil {
		var list *Error
		if !errors.As(err, &list) || len(list.Problems) == 0 {
			t.Fatalf("refused with %v", err)
		}
		for _, p := range list.Problems {
			if p.Reason == "" || strings.ContainsAny(p.Reason, "\n\r") {
				t.Errorf("the reason is no sentence: %q", p.Reason)
			}
		}
		return
	}
	if err := Check(c); err != nil {
		t.Fatalf("taken, and then refused: %v", err)
	}
	body, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseJSON(body)
	if err != nil {
		t.Fatalf("does not take back %s: %v", body, err)
	}
	if !reflect.DeepEqual(c, again) {
		t.Fatalf("%+v\ncame back as\n%+v", c, again)
	}
}
