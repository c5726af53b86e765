// Package filetest has a file system whose server can be told to hang: FUSE, served by a process of its own, since whoever touches its files may wait in the kernel for as
// long as it likes, and with it whatever a Go process does at the same time.
//
//	test ── commands ─▶ this program once more ── /dev/fuse ─▶ files disk0, disk1 ... of a directory
//
// A program that imports it is the server if the environment says so; nothing else has to be done for that.
package filetest
