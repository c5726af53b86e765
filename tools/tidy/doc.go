// Package tidy holds the rules of this repository that a compiler does not: which
// package may import which, where unsafe lives, what is documented, how long a file
// may grow, under which licence a BPF source is, and that generated objects are
// those of their sources.
//
// It has tests only. They read every Go file of the module once, as syntax, whatever
// its build tags; each rule is a function from a file to its findings, and has a
// test that shows it finding something.
package tidy
