package guest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"
)

// Migration is what QEMU says of one that is over.
type Migration struct {
	// Total is how long it took, Downtime how long the guest stood still.
	Total, Downtime time.Duration
	// Rounds is how often memory that had changed was copied again.
	Rounds int
	// Bytes were sent.
	Bytes uint64
}

// MigrateOptions say how a guest moves.
type MigrateOptions struct {
	// Downtime is how long it may stand still; 0 is 300 ms.
	Downtime time.Duration
	// Bandwidth in bytes a second; 0 is 128 MiB.
	Bandwidth uint64
}

// Migrate moves the guest, while it runs, into a machine that was started with Incoming. Afterwards the guest
// is to's, with the programs that run in it: who waits for one of them gets its end. What is left of g is to be closed. No program may be started
// meanwhile.
func (g *Guest) Migrate(ctx context.Context, to *Guest, o MigrateOptions) (Migration, error) {
	m, err := g.migrate(ctx, to, o)
	if err != nil {
		return m, fmt.Errorf("migrate guest %s to %s: %w%s%s", g.name, to.name, err, g.evidence(), to.evidence())
	}
	return m, nil
}

func (g *Guest) migrate(ctx context.Context, to *Guest, o MigrateOptions) (m Migration, err error) {
	if to.arrival == "" {
		return m, errors.New("it was not started with Incoming")
	}
	parameters := map[string]any{"downtime-limit": cmp.Or(o.Downtime, 300*time.Millisecond).Milliseconds(), "max-bandwidth": cmp.Or(o.Bandwidth, 128<<20)}
	err = g.qmp.ask(ctx, "migrate-set-parameters", parameters, nil)
	if err == nil {
		err = g.qmp.ask(ctx, "migrate", map[string]any{"uri": to.arrival}, nil)
	}
	for err == nil {
		var state struct {
			Status    string
			TotalTime int64  `json:"total-time"`
			Downtime  int64  `json:"downtime"`
			Reason    string `json:"error-desc"`
			RAM       struct {
				Rounds int    `json:"dirty-sync-count"`
				Bytes  uint64 `json:"transferred"`
			}
		}
		if err = g.qmp.ask(ctx, "query-migrate", nil, &state); err != nil {
			break
		}
		switch state.Status {
		case "completed":
			to.control.follow(g.control)
			ms := func(n int64) time.Duration { return time.Duration(n) * time.Millisecond }
			return Migration{Total: ms(state.TotalTime), Downtime: ms(state.Downtime), Rounds: state.RAM.Rounds, Bytes: state.RAM.Bytes}, nil
		case "failed", "cancelled":
			return m, fmt.Errorf("it %s: %s", state.Status, state.Reason)
		}
		select {
		case <-ctx.Done():
			err = fmt.Errorf("it is %s: %w", state.Status, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return m, err
}
