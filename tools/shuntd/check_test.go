package main

import (
	"strings"
	"testing"

	"github.com/shuntio/shunt/tools/control/config"
)

// A check of the file finds the sources that a start would refuse, wherever their servers are.
func TestCheckSources(t *testing.T) {
	for source, want := range map[string]string{
		"file:///none.img":       "",
		"file:///none.img?x=1":   "nothing may follow the path",
		"nbd://192.0.2.9/v1":     "",
		"nbd://192.0.2.9/v1?x=1": "x=1 is not understood",
		"nvme+tcp://192.0.2.9/nqn.2014-08.org.example:a?nsid=1":    "",
		"nvme+tcp://192.0.2.9/nqn.2014-08.org.example:a?nsid=0":    `nsid "0" is no number of a namespace`,
		"nvme+tcp://192.0.2.9/nqn.2014-08.org.example:a?digests=1": `unknown key "digests"`,
	} {
		wrong := checkSources(&config.Config{Volumes: []config.Volume{{Source: "file:///good"}, {Source: source}}})
		switch {
		case want == "" && len(wrong) > 0, want != "" && len(wrong) != 1:
			t.Errorf("%s: %v", source, wrong)
		case want != "" && (!strings.HasPrefix(wrong[0].Error(), "volumes[1].source: ") || !strings.Contains(wrong[0].Error(), want)):
			t.Errorf("%s: %v, want %s", source, wrong[0], want)
		}
	}
}
