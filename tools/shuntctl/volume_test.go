package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/control/controltest"
)

const exampleDisks = `
volume-groups: [{name: gold, limits: {iops: 20000, bps: 500000000}}, {name: free}]
volumes:
  - {name: vm1-root, socket: /run/shunt/vm1-root.sock, source: "nbd://192.0.2.9/vm1", volume-group: gold}
  - {name: vm2-root, socket: /run/shunt/vm2-root.sock, source: "nvme+tcp://192.0.2.9/nqn.2014-08.org.example:disks"}
`

type refusedStore string

func (r refusedStore) Error() string { return string(r) }
func (refusedStore) Unwrap() error   { return control.ErrStore }

// diskCounters are what the volume of a test has counted.
func diskCounters(reads uint64) control.Stats {
	return control.Stats{At: time.Unix(int64(reads), 0).UTC(), Objects: []control.ObjectStats{
		{Kind: control.KindPort, Name: "vm1-eth0"},
		{Kind: control.KindVolume, Name: "vm1-root", Volume: &control.VolumeStats{
			InFlight: 3, Retries: 7, Reconnects: 2, Unflushed: 41,
			Operations: []control.OperationStats{
				{Operation: "read", Requests: 100 * reads, Bytes: 409600 * reads, Errors: reads / 10,
					Queue: control.Histogram{Count: 100 * reads, Sum: 1e-3 * float64(reads), Buckets: []control.Bucket{{Bound: 16e-6, Count: 100 * reads}}},
					Store: control.Histogram{Count: 100 * reads, Sum: 20e-3 * float64(reads), Buckets: []control.Bucket{{Bound: 256e-6, Count: 100 * reads}}},
					Total: control.Histogram{Count: 100 * reads, Sum: 21e-3 * float64(reads), Buckets: []control.Bucket{
						{Bound: 128e-6, Count: 60 * reads}, {Bound: 256e-6, Count: 39 * reads}, {Bound: 2, Count: reads}}}},
				{Operation: "write", Requests: 5, Bytes: 20480, Total: control.Histogram{Count: 5, Sum: 5e-3, Buckets: []control.Bucket{{Bound: 1e-3, Count: 5}}}},
				{Operation: "flush", Requests: 1},
			}}},
	}}
}

func TestVolumeGolden(t *testing.T) {
	nbd := control.StoreStatus{Description: "nbd://192.0.2.9/vm1: NBD server with structured replies", Size: 10 << 30, BlockSize: 512, PhysicalBlock: 4096,
		Flush: true, FUA: true, Discard: true}
	_, socket := daemonOf(t, exampleDisks, func(e *controltest.Engine) {
		e.Store = func(s config.VolumeSource) (control.StoreStatus, error) {
			switch {
			case strings.HasPrefix(s.Source, "nvme"):
				return control.StoreStatus{}, refusedStore(s.Source + ": the connection was refused: start the target")
			case s.TLS != nil:
				return control.StoreStatus{Description: "with TLS as " + s.TLS.ServerName, Size: 1 << 20, BlockSize: 512, ReadOnly: s.ReadOnly}, nil
			}
			return nbd, nil
		}
		e.Exports = []control.VolumeExport{{Source: "nbd://192.0.2.9/vm1", Description: "the first"}, {Source: "nbd://192.0.2.9/vm2"}}
		e.Report = func() control.EngineStatus {
			return control.EngineStatus{Workers: []control.WorkerStatus{{CPU: 1, Idle: config.IdleAdaptive}}, Volumes: []control.VolumeStatus{
				{Name: "vm1-root", Socket: "/run/shunt/vm1-root.sock", Source: "nbd://192.0.2.9/vm1", Serial: "vm1-root", State: control.StateConnected, Store: &nbd,
					Guest: true, Queues: 2, Workers: []int{0}, Features: []string{"VERSION_1", "FLUSH"},
					Waits: []control.VolumeWait{{Reason: "rings were stopped whose requests the store has not ended: nothing is taken before that"}}},
				{Name: "vm2-root", Socket: "/run/shunt/vm2-root.sock", Source: "nvme+tcp://192.0.2.9/nqn.2014-08.org.example:disks", State: control.StateWaiting,
					Reason: "the connection was refused: start the target", Workers: []int{0}},
			}}
		}
		e.Counters = func() control.Stats { return diskCounters(10) }
	})
	again := filepath.Join(t.TempDir(), "again.yaml") // one is replaced, as its source has changed
	if err := os.WriteFile(again, []byte(strings.Replace(exampleDisks, "nvme+tcp://192.0.2.9", "nvme+tcp://192.0.2.10", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		golden string
		status int
		args   []string
	}{
		{"volumes-status", 0, []string{"status"}},
		{"volumes", 0, []string{"get", "volumes"}},
		{"volume", 0, []string{"get", "volume", "vm1-root"}},
		{"volume.json", 0, []string{"get", "volume", "vm1-root", "-o", "json"}},
		{"volume-groups", 0, []string{"get", "volume-groups"}},
		{"volume-group.json", 0, []string{"get", "volume-group", "gold", "-o", "json"}},
		{"volumes-stats", 0, []string{"stats"}},
		{"volume-stats", 0, []string{"stats", "vm1-root"}},
		{"volume-stats.json", 0, []string{"stats", "vm1-root", "-o", "json"}},
		{"volume-resize", 0, []string{"volume", "resize", "vm1-root"}},
		{"volume-resize-unknown", 1, []string{"volume", "resize", "vm9"}},
		{"volume-check", 0, []string{"volume", "check", "vm1-root"}},
		{"volume-check-uri", 0, []string{"volume", "check", "nbds://192.0.2.9/vm1", "--server-name", "storage", "--readonly"}},
		{"volume-check-refused", 1, []string{"volume", "check", "vm2-root"}},
		{"volume-exports", 0, []string{"volume", "exports", "nbd://192.0.2.9"}},
		{"volume-exports.json", 0, []string{"volume", "exports", "nvme+tcp://192.0.2.9", "-o", "json"}},
		{"volume-group-used", 1, []string{"delete", "volume-group", "gold"}},
		{"volume-apply", 0, []string{"apply", "-f", again}},
		{"volume-delete", 0, []string{"delete", "volume", "vm1-root"}},
	} {
		t.Run(test.golden, func(t *testing.T) {
			var out, errs bytes.Buffer
			status := run(t.Context(), append(test.args, "--socket", socket), strings.NewReader(""), &out, &errs)
			if status != test.status {
				t.Errorf("status %d, want %d", status, test.status)
			}
			got := steady(out.String())
			if errs.Len() > 0 {
				got += "stderr: " + errs.String()
			}
			compare(t, filepath.Join("testdata", test.golden+".golden"), got)
		})
	}
}

// What a volume waits for is shown with how long that takes at most, where it is known.
func TestVolumeWaits(t *testing.T) {
	now := time.Now()
	for until, want := range map[time.Time]string{{}: "", now.Add(1500 * time.Millisecond): ", 1.5 s at most", now.Add(-time.Second): ", 0.0 s at most"} {
		if got := within(until, now); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A volume in top and in stats --watch: what it does in a second.
func TestVolumeRates(t *testing.T) {
	v := newTopView(sortName, time.Second)
	status := control.Status{PID: 1, EngineStatus: control.EngineStatus{Volumes: []control.VolumeStatus{{Name: "vm1-root", State: control.StateWaiting}}}}
	v.update(snapshot{status, diskCounters(10)})
	v.update(snapshot{status, diskCounters(12)})
	text := v.text(120, 40)
	for _, want := range []string{"VOLUME", "vm1-root         waiting           100  409.6 k        0        0        0        3  210.0 us  256.0 us"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	r := compareVolumes(diskCounters(20).Objects[1].Volume, diskCounters(10).Objects[1].Volume, 1)
	if r.reads != 0 || r.total.Count != 0 || r.inFlight != 3 {
		t.Errorf("of counters that began anew: %+v", r)
	}
	var out bytes.Buffer
	table := newTable(&out)
	drawRates(table, compareStats(diskCounters(10), diskCounters(12)))
	if err := table.end(); err != nil || !strings.Contains(out.String(), "210.0 us  256.0 us") {
		t.Errorf("%v\n%s", err, &out)
	}
}
