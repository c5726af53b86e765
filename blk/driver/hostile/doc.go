// Package hostile is a guest that breaks the rules of virtio-blk, for any vhost-user-blk back-end. Each Attack writes into rings and memory by its own hand
// what a driver must not, or may but never does, and looks at what comes of it:
//
//	honest driver writes a reference ─▶ attack ─▶ outcome ─▶ memory and disk untouched but where they may be ─▶ honest driver: all is as before
//
// A device may answer a broken request with an error, or stop to look at the ring. It may not answer OK, write where no writable descriptor lets it,
// change other sectors, or fall over.
package hostile
