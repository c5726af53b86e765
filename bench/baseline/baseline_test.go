package main

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/need"
)

// Every job runs and gives what it shall; how fast is for make baseline to say.
func TestJobs(t *testing.T) {
	for _, j := range jobs {
		t.Run(j.name, func(t *testing.T) {
			if len(j.contenders) > 0 && j.name == transmitJob.name {
				need.Root(t)
			}
			results, err := j.run(3, 50*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			for i, turns := range results {
				for _, turn := range turns {
					if turn.ops == 0 || turn.wall == 0 {
						t.Errorf("%s did nothing in a turn", j.contenders[i].name)
					}
				}
			}
			var table strings.Builder
			printTable(&table, j, results)
			t.Log("\n" + table.String())
		})
	}
}

// What was sent arrived: a sender that loses frames would look fast.
func TestTransmitArrives(t *testing.T) {
	need.Root(t)
	for _, c := range transmitJob.contenders {
		t.Run(c.name, func(t *testing.T) {
			w, err := c.open()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			})
			sent, err := w.Do(200 * chunk)
			if err != nil {
				t.Fatal(err)
			}
			// The last few may still wait in the ring for another call.
			least := uint64(sent - frames)
			var arrived, dropped uint64
			for deadline := time.Now().Add(10 * time.Second); arrived+dropped < least && time.Now().Before(deadline); {
				if arrived, dropped, err = w.(interface {
					Arrived() (uint64, uint64, error)
				}).Arrived(); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d frames sent, %d arrived, %d dropped by the pair", sent, arrived, dropped)
			if arrived+dropped < least {
				t.Error("frames are missing that nobody counted")
			}
			// On a busy machine the sink's softirq comes late now and then.
			if dropped > uint64(sent)/10 {
				t.Error("more than a tenth was dropped: the figures would be a loser's")
			}
		})
	}
}

// Ours allocates nothing.
func TestOursAllocatesNothing(t *testing.T) {
	for _, j := range jobs {
		for _, c := range j.contenders {
			if !c.ours {
				continue
			}
			if j.name == transmitJob.name {
				need.Root(t)
			}
			w, err := c.open()
			if err != nil {
				t.Fatal(err)
			}
			if n := testing.AllocsPerRun(10, func() {
				if _, err := w.Do(chunk); err != nil {
					t.Error(err)
				}
			}); n != 0 {
				t.Errorf("%s: %s allocates %v times in %d operations", j.name, c.name, n, chunk)
			}
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// The versions are the ones that were judged, whatever else the build would prefer.
func TestVersions(t *testing.T) {
	for module, version := range map[string]string{
		"github.com/asavie/xdp":              "v0.3.3",
		"github.com/google/gopacket":         "v1.1.19",
		"github.com/pawelgaczynski/giouring": "v0.0.0-20230826085535-69588b89acb9",
	} {
		out, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}{{.Replace}}", module).CombinedOutput()
		if want := version + "<nil>\n"; err != nil || string(out) != want {
			t.Errorf("%s is %q, %v; want %q", module, out, err, want)
		}
	}
}
