package daemon

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropProgram takes the program's own pages out of this process that nothing has
// written to, as far as they are mapped from its file: code, constants and tables of
// the runtime. Each comes back from the page cache when it is used.
func dropProgram() {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var from, to uintptr
		var perms string
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &perms); n == 3 && !strings.Contains(perms, "w") && strings.HasSuffix(lines.Text(), " "+self) {
			unix.Madvise(unsafe.Slice((*byte)(unsafe.Add(nil, from)), to-from), unix.MADV_DONTNEED)
		}
	}
}
