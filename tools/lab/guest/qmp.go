package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// qmp speaks the QEMU Machine Protocol: JSON objects, a greeting first, then
// one answer a command, with events in between.
type qmp struct {
	mu   sync.Mutex
	conn net.Conn
	in   *json.Decoder
}

func newQMP(conn net.Conn) (*qmp, error) {
	q := &qmp{conn: conn, in: json.NewDecoder(conn)}
	var greeting struct{ QMP json.RawMessage }
	if err := q.in.Decode(&greeting); err != nil || greeting.QMP == nil {
		conn.Close()
		return nil, errors.Join(errors.New("QEMU's monitor did not greet"), err)
	}
	if err := q.execute(context.Background(), "qmp_capabilities"); err != nil {
		conn.Close()
		return nil, err
	}
	return q, nil
}

func (q *qmp) close() { q.conn.Close() }

// execute runs a command without arguments and waits for its answer.
func (q *qmp) execute(ctx context.Context, command string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if deadline, ok := ctx.Deadline(); ok {
		if err := q.conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(q.conn, "{\"execute\":%q}\n", command); err != nil {
		return fmt.Errorf("QEMU monitor command %s: %w", command, err)
	}
	for {
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := q.in.Decode(&reply); err != nil {
			return fmt.Errorf("QEMU monitor command %s: %w", command, err)
		}
		if reply.Error != nil {
			return fmt.Errorf("QEMU monitor command %s: %s", command, reply.Error.Desc)
		}
		if reply.Return != nil {
			return nil
		}
	}
}
