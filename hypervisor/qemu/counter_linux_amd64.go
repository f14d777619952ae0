package qemu

import (
	"bytes"
	"os"
)

// readCounter is the processor's time-stamp counter.
func readCounter() uint64

// steadyCounter says whether that counts at one speed, whatever the processor does
// (x86's constant_tsc and nonstop_tsc, arch/x86/kernel/cpu).
func steadyCounter() bool {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	b := make([]byte, 8<<10) // the first processor
	n, _ := f.Read(b)
	_, flags, _ := bytes.Cut(b[:n], []byte("\nflags"))
	flags, _, _ = bytes.Cut(flags, []byte("\n"))
	words := bytes.Fields(flags)
	return hasWord(words, "constant_tsc") && hasWord(words, "nonstop_tsc")
}

func hasWord(words [][]byte, word string) bool {
	for _, w := range words {
		if string(w) == word {
			return true
		}
	}
	return false
}
