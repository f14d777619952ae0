package agent

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// killMarked kills every process whose first environment held the given
// variable. It stands in for a control group where there is none, for programs
// that do not hide: a test's, not a hostile guest's.
func killMarked(variable string) {
	want := []byte(variable)
	// A process that forks while the list is read is found in the next round.
	for range 16 {
		found := false
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid <= 1 || pid == os.Getpid() {
				continue
			}
			env, err := os.ReadFile("/proc/" + e.Name() + "/environ")
			if err != nil {
				continue
			}
			for v := range bytes.SplitSeq(env, []byte{0}) {
				if bytes.Equal(v, want) {
					found = syscall.Kill(pid, syscall.SIGKILL) == nil || found
				}
			}
		}
		if !found {
			return
		}
	}
}

// processes are the numbers of those that there are.
func processes(yield func(int) bool) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid > 1 && !yield(pid) {
			return
		}
	}
}
