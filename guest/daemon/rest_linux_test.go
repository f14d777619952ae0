package daemon

import (
	"fmt"
	"net"
	"strings"
	"testing"
)

// The program's pages go and come back: this process goes on, its calls of libraries
// too, and holds less for a moment.
func TestDropProgram(t *testing.T) {
	before := residentBytes()
	dropProgram()
	after := residentBytes()
	t.Logf("%d KiB resident, %d before", after>>10, before>>10)
	if before == 0 || after >= before {
		t.Errorf("nothing was given back: %d, %d before", after, before)
	}
	if _, err := (&net.Resolver{}).LookupPort(t.Context(), "tcp", "http"); err != nil {
		t.Log(err) // it is about the call
	}
}

// Only what is as the file is, is dropped: never what may be written to, is another
// file's, or was written to before (RELRO).
func TestCleanRanges(t *testing.T) {
	const self = "/usr/bin/carreld"
	mapping := func(from, to int, perms, file string, anonymous int) string {
		return fmt.Sprintf("%08x-%08x %s 00001000 08:02 173521                             %s\nSize:                328 kB\nRss:                 328 kB\nAnonymous:             %d kB\nAnonHugePages:         0 kB\nVmFlags: rd ex mr mw me\n", from, to, perms, file, anonymous)
	}
	smaps := mapping(0x1000, 0x2000, "r-xp", self, 0) + mapping(0x2000, 0x3000, "r--p", self, 0) + mapping(0x3000, 0x4000, "r--p", self, 4) +
		mapping(0x4000, 0x5000, "rw-p", self, 0) + mapping(0x5000, 0x6000, "r-xp", "/usr/lib/libc.so.6", 0) + mapping(0x6000, 0x7000, "r--s", self, 0) +
		mapping(0x7000, 0x8000, "r-xp", self+".old", 0) + mapping(0x8000, 0x9000, "r--p", "", 0)
	if got := fmt.Sprint(cleanRanges(strings.NewReader(smaps), self)); got != "[[4096 8192] [8192 12288]]" {
		t.Errorf("%s would be dropped", got)
	}
}
