package daemon

import (
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/shuntio/shunt/tools/control"
)

// newExporter returns a server of /metrics alone.
func newExporter(c *control.Controller, log *slog.Logger) *http.Server {
	registry := prometheus.NewRegistry()
	registry.MustRegister(&collector{c}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4,
	}))
	return &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
}

// collector reads the engine's counters when it is asked. A scrape costs the workers nothing but a copy of what their volumes count.
type collector struct{ controller *control.Controller }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("shunt_"+name, help, labels, nil)
}

// traffic are the metrics of one kind of object that counts packets.
type traffic struct{ rxPackets, rxBytes, txPackets, txBytes *prometheus.Desc }

func newTraffic(kind control.Kind, from, to string) traffic {
	k := string(kind)
	return traffic{
		desc(k+"_receive_packets_total", "Packets that came "+from+".", k),
		desc(k+"_receive_bytes_total", "Bytes of packets that came "+from+".", k),
		desc(k+"_transmit_packets_total", "Packets that went "+to+".", k),
		desc(k+"_transmit_bytes_total", "Bytes of packets that went "+to+".", k),
	}
}

var (
	traffics = map[control.Kind]traffic{
		control.KindPort:    newTraffic(control.KindPort, "from the guest", "to the guest"),
		control.KindUplink:  newTraffic(control.KindUplink, "from the wire", "onto the wire"),
		control.KindNetwork: newTraffic(control.KindNetwork, "into the network", "out of the network"),
	}
	queues = map[string]*prometheus.Desc{
		"rx-packets": desc("queue_receive_packets_total", "Packets that came in by one queue of a port or uplink, by worker.", "kind", "object", "queue", "worker"),
		"rx-bytes":   desc("queue_receive_bytes_total", "Bytes that came in by one queue of a port or uplink, by worker.", "kind", "object", "queue", "worker"),
		"tx-packets": desc("queue_transmit_packets_total", "Packets that went out by one queue of a port or uplink, by worker.", "kind", "object", "queue", "worker"),
		"tx-bytes":   desc("queue_transmit_bytes_total", "Bytes that went out by one queue of a port or uplink, by worker.", "kind", "object", "queue", "worker"),
	}
	rulesDesc   = desc("acl_rule_packets_total", "Packets that a rule of a port decided about.", "port", "rule", "text")
	defaultDesc = desc("acl_default_packets_total", "Packets of a port that no rule matched.", "port", "verdict")
	alwaysDesc  = desc("acl_always_packets_total", "Packets of a port that no policy judges, as ARP.", "port")

	dropsDesc  = desc("drops_total", "Packets dropped, by the object that the reason is about.", "kind", "object", "reason")
	eventsDesc = desc("events_total", "What else an object counts, such as kicks and calls.", "kind", "object", "event")

	buildDesc    = desc("build_info", "The version that runs; always 1.", "version")
	failedDesc   = desc("config_failed_objects", "Configured objects that are not as they should be.")
	capturesDesc = desc("captures", "Captures that run.")
	workDesc     = desc("worker_busy_seconds_total", "Time that a worker spent on rounds that found work.", "worker")
	busyDesc     = desc("worker_busy_ratio", "Share of its time that a worker found work, over about the last second.", "worker")
	roundsDesc   = desc("worker_rounds_total", "Rounds of a worker's loop.", "worker")
	sleepsDesc   = desc("worker_sleeps_total", "Times a worker slept in the kernel.", "worker")
	packetsDesc  = desc("worker_packets_total", "Packets that a worker forwarded or dropped.", "worker")
	framesDesc   = desc("worker_free_frames", "Packets that a worker has room for now.", "worker")
	portDesc     = desc("port_connected", "Whether the port's guest is connected.", "port", "network")
	uplinkDesc   = desc("uplink_up", "Whether the uplink has carrier or its peer is connected.", "uplink")
	nextHopDesc  = desc("uplink_neighbours", "Next hops whose MAC address is known.", "uplink")
	fdbDesc      = desc("network_fdb_entries", "Forwarding entries beside those of local ports.", "network", "origin")
)

// Describe implements prometheus.Collector.
func (*collector) Describe(out chan<- *prometheus.Desc) {
	for _, t := range traffics {
		out <- t.rxPackets
		out <- t.rxBytes
		out <- t.txPackets
		out <- t.txBytes
	}
	for _, d := range queues {
		out <- d
	}
	for _, d := range []*prometheus.Desc{rulesDesc, defaultDesc, alwaysDesc, capturesDesc, workDesc, dropsDesc, eventsDesc, buildDesc, failedDesc, busyDesc, roundsDesc, sleepsDesc,
		packetsDesc, framesDesc, portDesc, uplinkDesc, nextHopDesc, fdbDesc} {
		out <- d
	}
	for _, d := range volumeDescs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, o := range c.controller.Stats().Objects {
		if o.Volume != nil {
			collectVolume(out, o.Name, o.Volume)
		}
		if t, known := traffics[o.Kind]; known {
			counter(t.rxPackets, o.RxPackets, o.Name)
			counter(t.rxBytes, o.RxBytes, o.Name)
			counter(t.txPackets, o.TxPackets, o.Name)
			counter(t.txBytes, o.TxBytes, o.Name)
		}
		for reason, n := range o.Drops {
			counter(dropsDesc, n, string(o.Kind), o.Name, reason)
		}
		for event, n := range o.More {
			counter(eventsDesc, n, string(o.Kind), o.Name, event)
		}
		if busy, has := o.More["busy-ns"]; has && o.Kind == control.KindWorker {
			out <- prometheus.MustNewConstMetric(workDesc, prometheus.CounterValue, float64(busy)/1e9, o.Name)
		}
		for _, q := range o.Queues {
			labels := []string{string(o.Kind), o.Name, strconv.Itoa(q.Queue), strconv.Itoa(q.Worker)}
			counter(queues["rx-packets"], q.RxPackets, labels...)
			counter(queues["rx-bytes"], q.RxBytes, labels...)
			counter(queues["tx-packets"], q.TxPackets, labels...)
			counter(queues["tx-bytes"], q.TxBytes, labels...)
		}
	}
	for _, p := range c.controller.Config().Ports {
		if p.ACL == nil {
			continue
		}
		a, err := c.controller.ACL(p.Name)
		if err != nil {
			continue // it went meanwhile
		}
		for i, r := range a.Rules {
			counter(rulesDesc, r.Packets, p.Name, strconv.Itoa(i), r.Rule.String())
		}
		counter(defaultDesc, a.DefaultPackets, p.Name, a.Default.String())
		counter(alwaysDesc, a.AlwaysPackets, p.Name)
	}
	gauge(capturesDesc, float64(len(c.controller.Captures())))
	s := c.controller.Status()
	gauge(buildDesc, 1, s.Version)
	gauge(failedDesc, float64(len(s.Failed)))
	for _, w := range s.Workers {
		id := strconv.Itoa(w.ID)
		gauge(busyDesc, w.Busy, id)
		counter(roundsDesc, w.Rounds, id)
		counter(sleepsDesc, w.Sleeps, id)
		counter(packetsDesc, w.Packets, id)
		gauge(framesDesc, float64(w.FreeFrames), id)
	}
	for _, u := range s.Uplinks {
		gauge(uplinkDesc, truth(u.State == control.StateUp || u.State == control.StateConnected), u.Name)
		gauge(nextHopDesc, float64(u.Neighbours), u.Name)
	}
	for _, n := range s.Networks {
		gauge(fdbDesc, float64(n.Static), n.Name, string(control.FDBStatic))
		gauge(fdbDesc, float64(n.Learned), n.Name, string(control.FDBLearned))
	}
	for _, p := range s.Ports {
		gauge(portDesc, truth(p.State == control.StateConnected), p.Name, p.Network)
	}
	for _, v := range s.Volumes {
		gauge(volumeConnected, truth(v.Guest), v.Name)
		gauge(volumeStoreUp, truth(v.Store != nil && v.State != control.StateWaiting), v.Name)
		gauge(volumeWait, waitOf(v, time.Now()).Seconds(), v.Name)
		if v.Store != nil {
			gauge(volumeSize, float64(v.Store.Size), v.Name)
		}
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
