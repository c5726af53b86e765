// Package dataplanetest has the fakes of package dataplane's seams: a Port that is fed and read by a test, and workers that
// a test drives round by round.
//
//	test ── Feed ──▶ Port.Receive ──▶ Forwarder ──▶ Port.Transmit ── Sent ──▶ test
package dataplanetest
