// Package qemu makes guests out of QEMU's microvm machine: no network card, no
// PCI, no firmware tables, seven kinds of device at most, and a QEMU process
// that has given up every right it does not need before its first instruction.
//
// The vsock device and the shared folders are vhost-user devices of our own
// (package vhostuser). Every socket between QEMU and us is one end of a socket
// pair that QEMU inherits, so no other process can come between them and
// nothing is left in the file system when either of us dies.
package qemu
