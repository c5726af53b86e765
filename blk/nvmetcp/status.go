package nvmetcp

import (
	"fmt"

	"github.com/shuntio/shunt/blk"
)

// status is the status field of a completion queue entry, phase bit included:
//
//	15 DNR  14 more  13:12 CRD  11:9 SCT  8:1 SC  0 phase
type status uint16

// code is the status code type and the status code.
func (s status) code() uint16 { return uint16(s) >> 1 & 0x7ff }

// dnr: do not retry.
func (s status) dnr() bool { return s&(1<<15) != 0 }

// crd is which of the controller's command retry delays is meant, 1 to 3; 0 none.
func (s status) crd() int { return int(s>>12) & 3 }

func (s status) ok() bool { return s.code() == 0 }

// Status codes, their type in the upper byte.
const (
	scInvalidOpcode   = 0x000 + 0x01
	scInvalidField    = 0x000 + 0x02
	scTransfer        = 0x000 + 0x04
	scPowerLoss       = 0x000 + 0x05
	scInternal        = 0x000 + 0x06
	scAborted         = 0x000 + 0x07
	scQueueDeleted    = 0x000 + 0x08
	scInvalidNS       = 0x000 + 0x0b
	scSequence        = 0x000 + 0x0c
	scSanitizing      = 0x000 + 0x1d
	scWriteProtected  = 0x000 + 0x20
	scInterrupted     = 0x000 + 0x21
	scTransient       = 0x000 + 0x22
	scLBARange        = 0x000 + 0x80
	scCapacity        = 0x000 + 0x81
	scNotReady        = 0x000 + 0x82
	scConflict        = 0x000 + 0x83
	scFormatting      = 0x000 + 0x84
	scBusy            = 0x100 + 0x81
	scConnectInvalid  = 0x100 + 0x82
	scInvalidHost     = 0x100 + 0x84
	scAuthenticate    = 0x100 + 0x91
	scNotSupported    = 0x100 + 0x8c
	scWriteFault      = 0x200 + 0x80
	scReadError       = 0x200 + 0x81
	scAccessDenied    = 0x200 + 0x86
	scPathInternal    = 0x300 + 0x00
	scANALost         = 0x300 + 0x01
	scANAInaccessible = 0x300 + 0x02
	scANATransition   = 0x300 + 0x03
	scPathController  = 0x300 + 0x60
)

var statusNames = map[uint16]string{
	scInvalidOpcode: "invalid command opcode", scInvalidField: "invalid field in command", scTransfer: "data transfer error",
	scPowerLoss: "aborted by power loss", scInternal: "internal error", scAborted: "aborted on request", scQueueDeleted: "aborted, its queue was deleted",
	scInvalidNS: "invalid namespace or format", scSequence: "command sequence error", scSanitizing: "sanitize in progress",
	scWriteProtected: "namespace is write protected", scInterrupted: "command interrupted", scTransient: "transient transport error",
	scLBARange: "LBA out of range", scCapacity: "capacity exceeded", scNotReady: "namespace not ready", scConflict: "reservation conflict",
	scFormatting: "format in progress", scWriteFault: "write fault", scReadError: "unrecovered read error", scAccessDenied: "access denied",
	scPathInternal: "internal path error", scANALost: "ANA: persistent loss", scANAInaccessible: "ANA: inaccessible", scANATransition: "ANA: in transition",
	scPathController: "controller pathing error",
}

// String is for people. Codes of type 1 mean another thing for each command, so they have no names here.
func (s status) String() string {
	name := statusNames[s.code()]
	if name == "" {
		name = "status"
	}
	if s.dnr() {
		return fmt.Sprintf("%s (%#03x, do not retry)", name, s.code())
	}
	return fmt.Sprintf("%s (%#03x)", name, s.code())
}

// verdict is what follows from a command's status. Of a request's commands the last of these counts.
type verdict uint8

const (
	done     verdict = iota // outcome OK
	again                   // the command has ended, without effect or with; it may be tried again, some times
	pathless                // this controller does not reach the namespace now
	unable                  // Unsupported
	refused                 // Failed, and would be again
)

// judge tells what a status means for a request. What the controller allows to be tried again is, but for what cannot get better.
func judge(s status, op blk.Op) verdict {
	if s.ok() {
		return done
	}
	switch s.code() {
	case scInvalidOpcode:
		return unable
	case scInvalidField, scNotSupported: // what is behind the namespace cannot do what the controller can
		if op == blk.OpDiscard || op == blk.OpWriteZeroes {
			return unable
		}
		return refused
	case scANALost, scANAInaccessible, scANATransition:
		return pathless // whatever DNR says: it is about this path
	case scInvalidNS, scWriteProtected, scLBARange, scCapacity, scConflict, scAccessDenied:
		return refused
	}
	if s.dnr() {
		return refused
	}
	return again
}
