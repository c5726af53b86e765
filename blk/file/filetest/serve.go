package filetest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Operations of the protocol (linux/fuse.h, 7.31).
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opInterrupt   = 36
	opPoll        = 40
	opBatchForget = 42
	opFallocate   = 43
)

var opNames = map[string]uint32{"read": opRead, "write": opWrite, "fsync": opFsync, "fallocate": opFallocate, "poll": opPoll}

const (
	headerBytes  = 40
	maxWrite     = 128 << 10
	requestBytes = maxWrite + 4096
	firstNode    = 2 // of disk0
)

// server has one thread, so nothing of it is anybody else's.
type server struct {
	dev    int
	hang   bool
	only   uint32 // an operation, where only that hangs
	unread bool
	held   [][]byte // requests without an answer
	disks  map[uint64][]byte
}

func serve(dir string) error {
	s := &server{disks: map[uint64][]byte{}}
	var err error
	if s.dev, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", s.dev)
	if err := unix.Mount("shunt-test", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return err
	}
	fmt.Println("mounted")
	commands := bufio.NewReader(os.Stdin)
	for {
		files := []unix.PollFd{{Fd: 0, Events: unix.POLLIN}, {Fd: int32(s.dev), Events: unix.POLLIN}}
		if s.unread {
			files = files[:1]
		}
		if _, err := unix.Poll(files, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if files[0].Revents != 0 {
			line, err := commands.ReadString('\n')
			if err != nil {
				return nil // who started us is gone
			}
			fmt.Println(s.command(strings.TrimSpace(line)))
		}
		if len(files) > 1 && files[1].Revents != 0 {
			if err := s.receive(); err != nil {
				return nil // unmounted
			}
		}
	}
}

func (s *server) command(line string) int {
	switch name, op, _ := strings.Cut(line, " "); {
	case name == "hang":
		s.hang, s.only = true, opNames[op]
	case line == "unread":
		s.unread = true
	case line == "go on":
		held := s.held
		s.hang, s.unread, s.held = false, false, nil
		for _, request := range held {
			s.answer(request)
		}
	case line == "held":
		return len(s.held)
	}
	return 0
}

func (s *server) receive() error {
	request := make([]byte, requestBytes)
	n, err := unix.Read(s.dev, request)
	switch {
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAGAIN):
		return nil
	case err != nil:
		return err
	}
	request = request[:n]
	switch op := binary.LittleEndian.Uint32(request[4:]); {
	case op == opForget, op == opBatchForget, op == opInterrupt:
	case s.hang && (s.only == 0 || s.only == op):
		s.held = append(s.held, request)
	default:
		s.answer(request)
	}
	return nil
}

func (s *server) answer(request []byte) {
	le := binary.LittleEndian
	body, errno := s.do(le.Uint32(request[4:]), le.Uint64(request[16:]), request[headerBytes:])
	out := le.AppendUint32(nil, uint32(16+len(body)))
	out = le.AppendUint32(out, uint32(-int32(errno)))
	out = append(le.AppendUint64(out, le.Uint64(request[8:])), body...)
	_, _ = unix.Write(s.dev, out) // who waited may have been killed
}

func (s *server) do(op uint32, node uint64, in []byte) (out []byte, errno unix.Errno) {
	le := binary.LittleEndian
	disk := s.disks[node]
	switch op {
	case opInit:
		out = make([]byte, 64)
		le.PutUint32(out, 7)
		le.PutUint32(out[4:], 31)
		le.PutUint32(out[8:], 128<<10)             // read ahead
		le.PutUint32(out[12:], 1|1<<5|1<<15|1<<22) // asynchronous reads, long writes, asynchronous O_DIRECT, max_pages
		le.PutUint32(out[20:], maxWrite)
		le.PutUint16(out[28:], maxWrite/4096)
		return out, 0
	case opLookup:
		var n uint64
		if _, err := fmt.Sscanf(strings.TrimRight(string(in), "\x00"), "disk%d", &n); err != nil {
			return nil, unix.ENOENT
		}
		node = firstNode + n
		if s.disks[node] == nil {
			s.disks[node] = bytes.Repeat([]byte{Filling}, Size)
		}
		return attr(append(le.AppendUint64(nil, node), make([]byte, 8+16+8)...), node), 0
	case opGetattr, opSetattr:
		return attr(make([]byte, 16), node), 0
	case opOpen:
		return make([]byte, 16), 0
	case opStatfs:
		return make([]byte, 80), 0
	case opRelease, opFsync, opFlush:
		return nil, 0
	case opPoll:
		out = make([]byte, 8)
		le.PutUint32(out, 0x145) // as a file that is never waited for: POLLIN, POLLOUT and theirs of normal data
		return out, 0
	}
	if disk == nil || len(in) < 32 {
		return nil, unix.ENOSYS
	}
	at := min(le.Uint64(in[8:]), Size)
	switch op {
	case opRead:
		return disk[at:min(at+uint64(le.Uint32(in[16:])), Size)], 0
	case opWrite:
		n := copy(disk[at:], in[headerBytes:])
		return append(le.AppendUint32(nil, uint32(n)), 0, 0, 0, 0), 0
	case opFallocate:
		clear(disk[at:min(at+le.Uint64(in[16:]), Size)])
		return nil, 0
	}
	return nil, unix.ENOSYS
}

func attr(b []byte, node uint64) []byte {
	le := binary.LittleEndian
	mode, size := uint32(unix.S_IFREG|0o600), uint64(Size)
	if node < firstNode {
		mode, size = unix.S_IFDIR|0o700, 0
	}
	b = le.AppendUint64(le.AppendUint64(le.AppendUint64(b, node), size), size/512)
	b = append(b, make([]byte, 3*8+3*4)...) // times
	b = le.AppendUint32(le.AppendUint32(b, mode), 1)
	b = append(b, make([]byte, 3*4)...)
	return append(le.AppendUint32(b, 4096), 0, 0, 0, 0)
}
