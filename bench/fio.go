package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// fioResult is what is of use in fio's report.
type fioResult struct {
	Jobs []struct {
		Read  fioSide `json:"read"`
		Write fioSide `json:"write"`
	} `json:"jobs"`
}

type fioSide struct {
	Requests uint64 `json:"total_ios"`
	Runtime  int64  `json:"runtime"` // ms
}

// fio puts the load of a cell on a file by itself, with io_uring and no virtqueue: what a program reaches that has the file to itself. Its CPU time is
// that of the process with the kernel's threads, less what a run with a single request takes: what fio says itself leaves io-wq out.
func fio(ctx context.Context, o BlockOptions, cell BlockCell, p BlockPeer, to *BlockResult) error {
	idle, err := runFio(ctx, o, cell, p, "--number_ios=1", &BlockResult{})
	if err != nil {
		return err
	}
	all, err := runFio(ctx, o, cell, p, "--time_based", to)
	to.CPU += max(all-idle, 0)
	return err
}

func runFio(ctx context.Context, o BlockOptions, cell BlockCell, p BlockPeer, limit string, to *BlockResult) (cpu time.Duration, err error) {
	mode := map[bool]string{false: "rand", true: ""}[cell.Sequential] + map[bool]string{false: "read", true: "write"}[cell.Write]
	args := []string{"--name=shunt", "--output-format=json", "--ioengine=io_uring", "--thread", limit, "--invalidate=0", "--fallocate=none",
		"--filename=" + p.File, "--rw=" + mode, "--bs=" + strconv.Itoa(cell.Bytes), "--iodepth=" + strconv.Itoa(cell.Depth),
		fmt.Sprintf("--runtime=%dms", o.Duration.Milliseconds()), fmt.Sprintf("--cpus_allowed=%d", o.WorkerCPU)}
	if o.Span > 0 {
		args = append(args, fmt.Sprintf("--size=%d", o.Span))
	}
	if p.Direct {
		args = append(args, "--direct=1")
	}
	cmd := exec.CommandContext(ctx, "fio", args...)
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("fio: %w", err)
	}
	var r fioResult
	if err := json.Unmarshal(out, &r); err != nil || len(r.Jobs) != 1 {
		return 0, fmt.Errorf("fio's report: %d jobs, %w", len(r.Jobs), err)
	}
	side := &r.Jobs[0].Read
	if cell.Write {
		side = &r.Jobs[0].Write
	}
	to.Requests += side.Requests
	to.Elapsed += time.Duration(side.Runtime) * time.Millisecond
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}
