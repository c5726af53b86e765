package uring

import "golang.org/x/sys/unix"

// Cached tells how many pages of a range of a file are in the page cache, without touching the file (cachestat); some may still be on their way there. Zero also if the kernel does
// not tell: see TellsCached.
//
// To read what is not there asks the disk for it, and the thread that enters does a part of that: the file system looks up where the bytes are, and waits for what it must read for
// that, and for room in the disk's queue. That it was told not to wait (RWF_NOWAIT) changes nothing, since the kernel reads ahead all the same. So a worker asks first, and has
// ReadvApart read what is not there.
func Cached(fd int, offset, length uint64) (pages uint64) {
	var stat unix.Cachestat_t
	if unix.Cachestat(uint(fd), &unix.CachestatRange{Off: offset, Len: length}, &stat, 0) != nil {
		return 0
	}
	return stat.Cache
}

// TellsCached tells whether the kernel answers that for a file (cachestat, 6.5).
func TellsCached(fd int) bool {
	var stat unix.Cachestat_t
	return !masked("cachestat") && unix.Cachestat(uint(fd), &unix.CachestatRange{Len: 1}, &stat, 0) == nil
}
