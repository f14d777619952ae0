package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/packet"
)

// Limits of an egress process: a core file would hold secrets; two sockets for
// each of 1,024 connections, those of their look-ups, ports, and some; its audit
// log is the only file it writes.
var egressLimits = map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: 8192, unix.RLIMIT_FSIZE: 64 << 20}

// confineEgress sets limits. On macOS nothing else confines an egress process
// yet, which parses what guests and servers say: docs/seatbelt.md.
func confineEgress(string) error {
	for res, n := range egressLimits {
		var old unix.Rlimit
		if err := unix.Getrlimit(res, &old); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
		n = min(n, old.Max)
		if err := unix.Setrlimit(res, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
	}
	return nil
}

// streamPair makes a connected pair of sockets, close-on-exec: as it happens, a
// packet's.
func streamPair() (a, b *os.File, err error) { return packet.Pair() }
