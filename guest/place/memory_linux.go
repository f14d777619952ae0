package place

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Memory returns how much memory programs can get before this machine swaps, and
// how much it has, in bytes: MemAvailable and MemTotal of proc_meminfo(5), or what
// the control groups of this process leave of them.
func Memory() (available, total int64, err error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	if available, total, err = parseMemory(string(b)); err != nil {
		return 0, 0, err
	}
	if own, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		available, total = withinGroups("/sys/fs/cgroup", string(own), available, total)
	}
	return available, total, nil
}

// withinGroups bounds what a machine has by what the groups of a process may have
// (cgroup v2, Documentation/admin-guide/cgroup-v2.rst): of memory.max and memory.high,
// the lesser, what is not used yet, where pages of files that could go do not count as
// used. own is the process's /proc/PID/cgroup.
func withinGroups(root, own string, available, total int64) (int64, int64) {
	var group string
	for line := range strings.Lines(own) {
		if g, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/"); ok {
			group = g
		}
	}
	if !filepath.IsLocal(group) { // the root, or one of another namespace
		return available, total
	}
	for ; group != "."; group = filepath.Dir(group) {
		dir := filepath.Join(root, group)
		most := min(groupNumber(dir, "memory.max"), groupNumber(dir, "memory.high"))
		if used := groupNumber(dir, "memory.current"); most < math.MaxInt64 && used < math.MaxInt64 {
			used -= min(used, inactiveFile(dir))
			total, available = min(total, most), min(available, max(most-used, 0))
		}
	}
	return available, total
}

// groupNumber is what one file of a group says; "max", or nothing that can be read:
// no limit.
func groupNumber(dir, name string) int64 {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return math.MaxInt64
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil || n < 0 {
		return math.MaxInt64
	}
	return n
}

func inactiveFile(dir string) (n int64) {
	b, err := os.ReadFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if _, err := fmt.Sscanf(line, "inactive_file %d", &n); err == nil {
			return max(n, 0)
		}
	}
	return 0
}

func parseMemory(text string) (available, total int64, err error) {
	for line := range strings.Lines(text) {
		for name, to := range map[string]*int64{"MemAvailable:": &available, "MemTotal:": &total} {
			var kib int64
			if n, _ := fmt.Sscanf(line, name+" %d kB", &kib); n == 1 && kib > 0 && kib < 1<<50 {
				*to = kib << 10
			}
		}
	}
	if available == 0 || total == 0 {
		return 0, 0, fmt.Errorf("/proc/meminfo does not say how much memory there is")
	}
	return available, total, nil
}

// maxLooked bounds the processes that Touched looks at.
const maxLooked = 64

// Touched is how much of a guest's memory is there, in bytes, of a keeper's
// process: the most shared memory that it or a process below it has mapped in. A
// guest's memory is one file of shared memory, which several of them map. 0 where
// nothing can be seen.
func Touched(pid int) (most int64) {
	todo := []int{pid}
	for n := 0; len(todo) > 0 && n < maxLooked; n++ {
		pid, todo = todo[0], todo[1:]
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		if b, err := os.ReadFile(filepath.Join(dir, "status")); err == nil {
			most = max(most, sharedMemory(b))
		}
		lists, _ := filepath.Glob(filepath.Join(dir, "task", "*", "children")) // the pattern is sound
		for _, f := range lists {
			b, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			for _, w := range bytes.Fields(b) {
				if child, err := strconv.Atoi(string(w)); err == nil && len(todo) < maxLooked {
					todo = append(todo, child)
				}
			}
		}
	}
	return most
}

// sharedMemory is RssShmem of a process's status (proc_pid_status(5)), in bytes.
func sharedMemory(status []byte) int64 {
	_, rest, ok := bytes.Cut(status, []byte("\nRssShmem:"))
	f := bytes.Fields(rest)
	if !ok || len(f) == 0 {
		return 0
	}
	kib, err := strconv.ParseInt(string(f[0]), 10, 64)
	if err != nil || kib < 0 || kib > 1<<50 {
		return 0
	}
	return kib << 10
}
