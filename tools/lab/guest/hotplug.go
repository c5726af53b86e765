package guest

import (
	"context"
	"fmt"
)

// slotArguments are those of PCI Express slots that are empty when the guest boots.
func slotArguments(n int) (args []string) {
	for i := range n {
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=slot%d,chassis=%d,slot=%d", i, i+1, i+1))
	}
	return args
}

// PlugID names the disk in a slot, and the way to its back-end, to QEMU's monitor.
func PlugID(slot int) string { return fmt.Sprintf("plugged%d", slot) }

// Plug puts a disk into an empty slot of Options.Slots. The guest finds it some time later.
func (g *Guest) Plug(ctx context.Context, slot int, d Disk) error {
	backend := map[string]any{"server": false, "addr": map[string]any{"type": "unix", "data": map[string]any{"path": d.Socket}}}
	if d.Reconnect {
		backend["reconnect"] = 1
	}
	id := PlugID(slot)
	err := g.Ask(ctx, "chardev-add", map[string]any{"id": id, "backend": map[string]any{"type": "socket", "data": backend}}, nil)
	if err == nil {
		err = g.Ask(ctx, "device_add", map[string]any{"driver": "vhost-user-blk-pci", "id": id, "chardev": id, "bus": fmt.Sprintf("slot%d", slot),
			"num-queues": max(1, d.Queues), "vectors": 0}, nil)
	}
	if err != nil {
		return fmt.Errorf("plug %s into guest %s: %w", d.Socket, g.name, err)
	}
	return nil
}

// Ask has QEMU's monitor carry out a command, and takes its answer, if that is wanted.
func (g *Guest) Ask(ctx context.Context, command string, arguments map[string]any, answer any) error {
	return g.qmp.ask(ctx, command, arguments, answer)
}

// Deleted counts how often a device has left the machine, as far as QEMU's monitor had said so when it was asked last.
func (g *Guest) Deleted(device string) int {
	g.qmp.mu.Lock()
	defer g.qmp.mu.Unlock()
	return g.qmp.deleted[device]
}

// Boots counts how often the guest was ready. Boot waits until it was for the n-th time.
func (g *Guest) Boots() int { return g.control.bootCount() }

// Boot is for those who had the guest reset by Ask.
func (g *Guest) Boot(ctx context.Context, n int) error {
	if err := g.waitReady(ctx, n); err != nil {
		return fmt.Errorf("boot guest %s: %w%s", g.name, err, g.evidence())
	}
	return nil
}
