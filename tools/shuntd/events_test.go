package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// What is counted beside packets is explained to who reads it.
func TestEventsAreDocumented(t *testing.T) {
	guide, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`(?:More|more)\["([a-z-]*[a-z])"\]|"([a-z-]+)": &?(?:stats|w)\.`)
	found := 0
	for _, file := range []string{"report.go", "report_volume.go", "guest.go", "veth.go", "ring.go"} {
		code, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, names := range named.FindAllStringSubmatch(string(code), -1) {
			found++
			if name := names[1] + names[2]; !strings.Contains(string(guide), "`"+name+"`") {
				t.Errorf("%s counts %q, of which docs/operations.md says nothing", file, name)
			}
		}
	}
	if found < 40 {
		t.Errorf("only %d counters were found: has the code another form?", found)
	}
}
