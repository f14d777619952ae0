package qemu

import (
	"os"
	"runtime"
	"strings"
	"testing"
)

// The parent-death signal is asked of the first thread, see attempts.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "attack" {
		runtime.LockOSThread()
	}
}

// TestMain has the test binary be every other program that its tests start.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-test.") {
		asProgram(os.Args[1:])
	}
	os.Exit(m.Run())
}
