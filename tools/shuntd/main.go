// Shuntd is the offload daemon: it turns guests' virtual IO into real IO.
//
// The frame around it (flags, configuration, signals, API, metrics) is package tools/control/daemon; what moves packets are dataplane, vxlan and
// bpf, what serves disks are dataplane and blk. Here is the wire between them: an engine that makes each configured object of parts of those.
package main

import (
	"log/slog"
	"os"

	"github.com/shuntio/shunt/tools/control"
	"github.com/shuntio/shunt/tools/control/config"
	"github.com/shuntio/shunt/tools/control/daemon"
)

func main() {
	os.Exit(daemon.Main(daemon.Options{
		Args: os.Args[1:], Check: checkSources,
		NewEngine: func(c *config.Config, log *slog.Logger) (control.Engine, error) {
			e, err := newEngine(c.Workers, log)
			if err != nil {
				return nil, err
			}
			e.name = c.Control.Socket
			return e, nil
		},
	}))
}
