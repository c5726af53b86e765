// Package offload cuts TCP packets that are longer than their path allows into segments, and merges the segments of a flow into such packets: what
// a NIC calls TSO and LRO, in software, for ports on one side of which packets are large and on the other not.
//
//	guest ──▶ frame with GSO ──▶ Check ─┬────────────────────────▶ a guest that takes it: whole
//	                                    └▶ Segmenter ──▶ segments ─▶ the wire, or a guest that does not
//
//	wire ───▶ segments ──▶ Coalescer ──▶ frame with GSO ──▶ a guest that takes it
//
// A frame with GSO is as virtio has it (virtio 1.2, 5.1.6.2): one set of headers for the whole payload, GSO.Size the payload of each segment but the
// last, and Checksum.Needed with the pseudo header's sum in the TCP header's field. All that a guest says of it is judged by Check on the private head;
// lengths in its IP header are not looked at, since every segment gets its own.
//
// Payload is copied once when a frame is cut, from wherever its body lies into the segment, and summed there, on the private copy. It is not
// copied at all when segments are merged: their chunks become the body of the first one's frame (frame.Attach).
//
// The two are each other's reverse: what the Coalescer merged, the Segmenter cuts into the very same bytes, but for IPv4's identification where it means
// nothing (RFC 6864, 4.1). The Coalescer merges nothing else, so nothing is lost that a header said. A Segmenter and a Coalescer belong to one worker; they allocate nothing.
package offload
