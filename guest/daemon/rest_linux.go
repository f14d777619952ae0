package daemon

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dropProgram takes the program's own pages out of this process: code, constants and
// tables of the runtime. Each comes back from the page cache when it is used.
func dropProgram() {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	for _, r := range cleanRanges(f, self) {
		unix.Madvise(unsafe.Slice((*byte)(unsafe.Add(nil, r[0])), r[1]-r[0]), unix.MADV_DONTNEED)
	}
}

// cleanRanges are the mappings of a file in a process's smaps (proc_pid_smaps(5))
// that are as the file is and stay so: nothing may write to them, and nothing has.
// What a linker has written to before it took that right away (RELRO: the addresses of
// libraries' functions) has anonymous pages, and would be lost.
func cleanRanges(smaps io.Reader, file string) (clean [][2]uintptr) {
	var from, to uintptr
	ours, rest := false, "" // of the mapping whose lines come
	for lines := bufio.NewScanner(smaps); lines.Scan(); {
		line := lines.Text()
		var a, b uintptr
		var perms string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &a, &b, &perms); n == 3 && len(perms) == 4 {
			from, to = a, b
			ours = perms[1] != 'w' && perms[3] == 'p' && strings.HasSuffix(line, " "+file)
			continue
		}
		if _, err := fmt.Sscanf(line, "Anonymous: %s", &rest); err == nil && rest == "0" && ours {
			clean = append(clean, [2]uintptr{from, to})
		}
	}
	return clean
}
