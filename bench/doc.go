// Package bench measures shunt: scenarios that build an engine, or part of one, put load on it, and report rates, busy time per packet and
// pauses. Scenarios are plain functions, so that tests hold the figures and shuntbench prints them.
//
// Figures on a shared machine are noisy. Compare within one run, and compare busy time (the time a worker spends in rounds that
// found work, divided by packets) where the other side limits the rate.
package bench
