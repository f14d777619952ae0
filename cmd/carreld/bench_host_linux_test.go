//go:build bench

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const residentHow = "anonymous pages and those of files, as /proc says, without the guest's own memory"

// usage is what a process holds, in MB, and how often its threads were put on a
// processor since it began.
func usage(pid int) (mb, switches float64, err error) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid)) // the pattern is sound
	for i, f := range append(files, fmt.Sprintf("/proc/%d/status", pid)) {
		text, err := os.ReadFile(f)
		if err != nil {
			return 0, 0, err
		}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			var n float64
			switch fmt.Sscan(value, &n); {
			case i == len(files) && (name == "RssAnon" || name == "RssFile"):
				mb += n * 1024 / 1e6
			case i < len(files) && strings.HasSuffix(name, "voluntary_ctxt_switches"):
				switches += n
			}
		}
	}
	return mb, switches, nil
}

func hostFacts() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s, %d cores, Linux %s", cpuModel(), runtime.NumCPU(), unix.ByteSliceToString(u.Release[:]))
}

func echoListen(path string) (net.Listener, error) { return net.Listen("unix", path) }

func echoDial(ctx context.Context, path string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", path)
}
