// Package passing carries the streams between the host and a guest that is a
// process of the same kernel: in place of vsock, one socket that the guest
// inherits, over which connected sockets are passed.
//
// Messages on that socket (SOCK_SEQPACKET), numbers big endian, 4 bytes each:
//
//	host to guest    port          with one stream: the host dials that port
//	guest to host    port, id      the guest dials that port; no stream comes with it
//	host to guest    port, id      the answer: with one stream, or without: refused
//
// Only the host makes streams. What a guest would pass could be any open file:
// closing one of a file system that the guest serves can wait for the guest,
// and one that the guest keeps a copy of can be switched to block. So the host
// takes no file from the guest, ever.
package passing
