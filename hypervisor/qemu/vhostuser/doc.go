// Package vhostuser serves virtio devices to QEMU over a Unix socket, so that
// a guest's vsock and its shared folders need no kernel module, no root and
// nothing that is global to the host.
//
// QEMU is the front end: it passes the guest's memory as a file descriptor and
// the addresses of the virtqueues in it. The back end here reads requests from
// those queues and answers them.
//
//	guest driver ── virtqueues in shared memory ──┐
//	QEMU ── messages, eventfds over the socket ── Serve ── Device (vsock, fs)
//
// The guest writes to its memory at any instant. So everything in it is read
// once into locals and bounded before it sizes or addresses anything, and a
// queue that makes no sense is stopped until the driver sets it up again. QEMU
// is trusted somewhat more, but it may have been taken over by its guest: its
// messages are bounded too, and the memory it hands over must be sealed
// against shrinking, because a mapping that loses its pages would kill the
// process with SIGBUS.
//
// Sources: docs/interop/vhost-user.rst of QEMU 7.2; Virtual I/O Device
// (VIRTIO) 1.2, sections 2.7 (split virtqueues) and 5.10 (socket device).
package vhostuser
