package daemon

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/control/controltest"
	"github.com/shuntio/shunt/vxlan/acl"
)

// scrape is every metric of a daemon that has one of everything, with its labels.
func scrape(t *testing.T) map[string][]string {
	t.Helper()
	c, err := config.Parse("test.yaml", []byte(`
uplinks: [{name: up0, interface: eth1, address: 192.0.2.1}]
networks: [{name: blue, uplink: up0, vni: 7}]
ports: [{name: p1, network: blue, socket: /run/p1.sock, mac: 52:54:00:00:00:01, acl: {rules: ["allow in icmp type 8"]}}]
volumes: [{name: v1, socket: /run/v1.sock, source: "nbd://192.0.2.9/v1"}]
`))
	if err != nil {
		t.Fatal(err)
	}
	full := control.Counters{RxPackets: 1, Drops: map[string]uint64{"no-route": 1}, More: map[string]uint64{"busy-ns": 5e9}}
	engine := &controltest.Engine{
		Counters: func() control.Stats {
			var s control.Stats
			for _, o := range []control.ObjectStats{{Kind: control.KindWorker, Name: "0"}, {Kind: control.KindUplink, Name: "up0"},
				{Kind: control.KindNetwork, Name: "blue"}, {Kind: control.KindPort, Name: "p1"}} {
				o.Counters, o.Queues = full, []control.QueueStats{{Queue: 0, Worker: 0, Counters: full}}
				s.Objects = append(s.Objects, o)
			}
			times := control.Histogram{Count: 1, Sum: 1e-3, Buckets: []control.Bucket{{Bound: 1e-3, Count: 1}}}
			s.Objects = append(s.Objects, control.ObjectStats{Kind: control.KindVolume, Name: "v1", Volume: &control.VolumeStats{
				Operations: []control.OperationStats{{Operation: "read", Requests: 1, Queue: times, Store: times, Total: times}}}})
			return s
		},
		Hits: func(string) acl.Hits { return acl.Hits{Rules: []uint64{3}, Default: 4, Always: 5} },
	}
	engine.Report = func() control.EngineStatus {
		plain := controltest.Engine{}
		s := plain.Status()
		s.Uplinks, s.Networks = []control.UplinkStatus{{Name: "up0"}}, []control.NetworkStatus{{Name: "blue"}}
		s.Ports = []control.PortStatus{{Name: "p1", Network: "blue"}}
		s.Volumes = []control.VolumeStatus{{Name: "v1", Store: &control.StoreStatus{Size: 1 << 30}}}
		return s
	}
	controller := control.New(engine, c, slog.New(slog.DiscardHandler))
	if _, err := controller.Apply(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry() // holds descriptions and metrics to each other
	registry.MustRegister(&collector{controller}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	metrics := map[string][]string{}
	for _, f := range families {
		labels := []string{"instance", "job"}
		for _, l := range f.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		metrics[f.GetName()] = labels
	}
	return metrics
}

var (
	dashboardExpr   = regexp.MustCompile(`"expr":`)
	metricName      = regexp.MustCompile(`\b(?:shunt|go|process)_[a-z0-9_]+`)
	selector        = regexp.MustCompile(`((?:shunt|go|process)_[a-z0-9_]+)\{([^}]*)\}`)
	selectorLabel   = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`)
	grouping        = regexp.MustCompile(`\bby \(([^)]*)\)`)
	legendLabel     = regexp.MustCompile(`\{\{(\w+)\}\}`)
	templateQueries = regexp.MustCompile(`label_values\(((?:shunt|go|process)_\w+)(?:\{[^}]*\})?, (\w+)\)`)
)

// Every metric that the dashboard asks for is in a scrape, with every label it asks for; and it leaves no metric of ours out.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "grafana", "shunt.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		UID        string
		Templating struct {
			List []struct{ Name, Definition string }
		}
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	metrics := scrape(t)
	asked := map[string]bool{}
	variables := []string{"datasource", "__rate_interval"}
	known := func(where, metric string, labels ...string) {
		for _, part := range []string{"_bucket", "_sum", "_count"} { // of a histogram
			if whole, is := strings.CutSuffix(metric, part); is && metrics[whole] != nil {
				metric = whole
				if part == "_bucket" {
					labels = slices.DeleteFunc(slices.Clone(labels), func(l string) bool { return l == "le" })
				}
			}
		}
		have, is := metrics[metric]
		if !is {
			t.Errorf("%s asks for %s, which no scrape has", where, metric)
			return
		}
		asked[metric] = true
		for _, l := range labels {
			if !slices.Contains(have, l) {
				t.Errorf("%s asks for label %s of %s, which has %v", where, l, metric, have)
			}
		}
	}
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
		if m := templateQueries.FindStringSubmatch(v.Definition); m != nil {
			known("variable "+v.Name, m[1], m[2])
		} else if v.Name != "datasource" {
			t.Errorf("variable %s is not understood: %s", v.Name, v.Definition)
		}
	}
	exprs := 0
	ids := map[int]string{}
	for i, p := range d.Panels {
		if other, twice := ids[p.ID]; twice {
			t.Errorf("%s and %s have the same id", p.Title, other)
		}
		ids[p.ID] = p.Title
		for _, q := range d.Panels[:i] {
			if p.GridPos.X < q.GridPos.X+q.GridPos.W && q.GridPos.X < p.GridPos.X+p.GridPos.W && p.GridPos.Y < q.GridPos.Y+q.GridPos.H && q.GridPos.Y < p.GridPos.Y+p.GridPos.H {
				t.Errorf("%s lies upon %s", p.Title, q.Title)
			}
		}
		for _, target := range p.Targets {
			exprs++
			names := metricName.FindAllString(target.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%s asks for nothing: %s", p.Title, target.Expr)
			}
			for _, name := range names {
				known(p.Title, name)
			}
			for _, m := range selector.FindAllStringSubmatch(target.Expr, -1) {
				for _, l := range selectorLabel.FindAllStringSubmatch(m[2], -1) {
					known(p.Title, m[1], l[1])
				}
			}
			shown := legendLabel.FindAllStringSubmatch(target.LegendFormat, -1)
			if by := grouping.FindStringSubmatch(target.Expr); by != nil {
				kept := strings.Split(by[1], ", ")
				known(p.Title, names[0], kept...)
				for _, l := range shown {
					if !slices.Contains(kept, l[1]) {
						t.Errorf("%s shows the label %s, which its sum is not by", p.Title, l[1])
					}
				}
			}
			for _, l := range shown {
				known(p.Title, names[0], l[1])
			}
			for _, v := range regexp.MustCompile(`\$(\w+)`).FindAllStringSubmatch(target.Expr, -1) {
				if !slices.Contains(variables, v[1]) {
					t.Errorf("%s uses the variable %s, which there is not", p.Title, v[1])
				}
			}
		}
	}
	if n := len(dashboardExpr.FindAll(text, -1)); exprs != n || n < 20 {
		t.Errorf("%d of %d expressions were looked at", exprs, n)
	}
	for name := range metrics {
		if strings.HasPrefix(name, "shunt_") && !strings.HasPrefix(name, "shunt_network_receive") && !strings.HasPrefix(name, "shunt_network_transmit") && !asked[name] {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
}
