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
	// deleted counts the events that say that a device is gone, by its name.
	deleted map[string]int
}

func newQMP(conn net.Conn) (*qmp, error) {
	q := &qmp{conn: conn, in: json.NewDecoder(conn), deleted: map[string]int{}}
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
	return q.ask(ctx, command, nil, nil)
}

// ask runs a command with arguments, if there are any, and takes its answer, if that is wanted.
func (q *qmp) ask(ctx context.Context, command string, arguments map[string]any, answer any) error {
	fail := func(err error) error { return fmt.Errorf("QEMU monitor command %s: %w", command, err) }
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	line, err := json.Marshal(request)
	if err != nil {
		return fail(err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if deadline, ok := ctx.Deadline(); ok {
		if err := q.conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if _, err := q.conn.Write(append(line, '\n')); err != nil {
		return fail(err)
	}
	for {
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
			Event  string
			Data   struct{ Device string }
		}
		if err := q.in.Decode(&reply); err != nil {
			return fail(err)
		}
		if reply.Event == "DEVICE_DELETED" {
			q.deleted[reply.Data.Device]++
		}
		if reply.Error != nil {
			return fail(errors.New(reply.Error.Desc))
		}
		if reply.Return != nil {
			if answer == nil {
				return nil
			}
			return json.Unmarshal(reply.Return, answer)
		}
	}
}
