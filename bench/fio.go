package bench

import (
	"bytes"
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
		// Of the job's thread: per cent of its time, in ms.
		User    float64 `json:"usr_cpu"`
		System  float64 `json:"sys_cpu"`
		Runtime int64   `json:"job_runtime"`
	} `json:"jobs"`
}

// busy is the CPU time of the job's thread.
func (r *fioResult) busy() time.Duration {
	j := &r.Jobs[0]
	return time.Duration((j.User + j.System) / 100 * float64(j.Runtime) * float64(time.Millisecond))
}

type fioSide struct {
	Requests uint64 `json:"total_ios"`
	Runtime  int64  `json:"runtime"` // ms
}

// fio puts the load of a cell on a file by itself, with io_uring, or on an export, with libnbd, and no virtqueue: what a program reaches that has the file to itself. Its CPU
// time of writes is that of the process with the kernel's threads, less what a run with a single request takes: what fio says itself leaves io-wq out. Reads, and libnbd, have no
// threads but the job's, so there fio is believed.
func fio(ctx context.Context, o BlockOptions, cell BlockCell, p BlockPeer, to *BlockResult) error {
	if p.NBD != "" || !cell.Write {
		r, _, err := runFio(ctx, o, cell, p, "--time_based", to)
		if err == nil {
			to.CPU += r.busy()
		}
		return err
	}
	_, idle, err := runFio(ctx, o, cell, p, "--number_ios=1", &BlockResult{})
	if err != nil {
		return err
	}
	_, all, err := runFio(ctx, o, cell, p, "--time_based", to)
	to.CPU += max(all-idle, 0)
	return err
}

func runFio(ctx context.Context, o BlockOptions, cell BlockCell, p BlockPeer, limit string, to *BlockResult) (r *fioResult, cpu time.Duration, err error) {
	mode := map[bool]string{false: "rand", true: ""}[cell.Sequential] + map[bool]string{false: "read", true: "write"}[cell.Write]
	args := []string{"--name=shunt", "--output-format=json", "--thread", limit, "--rw=" + mode, "--bs=" + strconv.Itoa(cell.Bytes),
		"--iodepth=" + strconv.Itoa(cell.Depth), fmt.Sprintf("--runtime=%dms", o.Duration.Milliseconds()), fmt.Sprintf("--cpus_allowed=%d", o.WorkerCPU)}
	if p.NBD != "" {
		args = append(args, "--ioengine=nbd", "--uri="+p.NBD)
	} else {
		args = append(args, "--ioengine=io_uring", "--filename="+p.File, "--invalidate=0", "--fallocate=none")
	}
	if o.Span > 0 {
		args = append(args, fmt.Sprintf("--size=%d", o.Span))
	}
	if p.Direct {
		args = append(args, "--direct=1")
	}
	cmd := exec.CommandContext(ctx, "fio", args...)
	out, err := cmd.Output()
	if err != nil {
		return nil, 0, fmt.Errorf("fio: %w", err)
	}
	out = out[max(bytes.IndexByte(out, '{'), 0):] // engines say things before it
	r = new(fioResult)
	if err := json.Unmarshal(out, r); err != nil || len(r.Jobs) != 1 {
		return nil, 0, fmt.Errorf("fio's report: %d jobs, %w", len(r.Jobs), err)
	}
	side := &r.Jobs[0].Read
	if cell.Write {
		side = &r.Jobs[0].Write
	}
	to.Requests += side.Requests
	to.Elapsed += time.Duration(side.Runtime) * time.Millisecond
	return r, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}
