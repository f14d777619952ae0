package hypervisortest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// killTree ends a process and everything that descends from it, as the end of
// a machine would: a stopped process cannot fork, so the tree is stopped from
// its root until it grows no more, and then killed.
func killTree(root *os.Process) {
	root.Signal(syscall.SIGSTOP)
	var tree []*os.Process
	for {
		grown := false
		pids := []int{root.Pid}
		for _, p := range tree {
			pids = append(pids, p.Pid)
		}
		for _, pid := range pids {
			for _, child := range Children(pid) {
				if slices.Contains(pids, child) {
					continue
				}
				if p, err := os.FindProcess(child); err == nil && p.Signal(syscall.SIGSTOP) == nil {
					tree, grown = append(tree, p), true
				}
			}
		}
		if !grown {
			break
		}
	}
	root.Kill()
	for _, p := range tree {
		p.Kill()
		p.Release()
	}
}

// Children are the pids of a process's children that still run; zombies do not.
func Children(pid int) []int {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is sound
	var children []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // that thread is gone
		}
		for _, w := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(w); err == nil && !zombie(n) {
				children = append(children, n)
			}
		}
	}
	slices.Sort(children)
	return slices.Compact(children)
}

// stopped says whether all threads of a process are stopped: the signal
// reaches each in its own time.
func stopped(pid int) bool {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid)) // the pattern is sound
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && state(b) != 'T' {
			return false
		}
	}
	return true
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	s := state(b)
	return s == 'Z' || s == 'X' || s == 0
}

// state is that of a stat file: pid (name) state ...; the name may hold
// anything.
func state(stat []byte) byte {
	i := strings.LastIndexByte(string(stat), ')')
	if i < 0 || i+2 >= len(stat) {
		return 0
	}
	return stat[i+2]
}
