package wall

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pause stops every process of the guest: by the freezer, or where there is
// none as the driver does it, or by SIGSTOP to each. A stopped process cannot fork, so the tree is stopped
// from its root until it grows no more.
func (w *Process) pause() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ok, err := w.Groups.Freeze(); ok {
		return err
	}
	if w.hooks.Pause != nil {
		return w.onThread(w.hooks.Pause)
	}
	for end := time.Now().Add(freezeTimeout); time.Now().Before(end); time.Sleep(time.Millisecond) {
		all := true
		for _, pid := range w.tree() {
			if !isStopped(pid) {
				_ = unix.Kill(pid, unix.SIGSTOP) // or it has ended, which is as good
				all = false
			}
		}
		if all {
			return nil
		}
	}
	return fmt.Errorf("not every process stopped within %v (there is no freezer for this user; stop the guest instead)", freezeTimeout)
}

func (w *Process) resume() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.Groups.Thaw() {
		return nil
	}
	if w.hooks.Resume != nil {
		return w.onThread(w.hooks.Resume)
	}
	tree := w.tree()
	slices.Reverse(tree) // the agent last
	for _, pid := range tree {
		if err := unix.Kill(pid, unix.SIGCONT); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// tree is the guest's processes, the first one first. An orphan becomes the
// first one's child, so none is elsewhere.
func (w *Process) tree() []int {
	var pids []int
	next := Children(w.Child.Process.Pid)
	for len(next) > 0 {
		pid := next[0]
		next = next[1:]
		if !slices.Contains(pids, pid) {
			pids = append(pids, pid)
			next = append(next, Children(pid)...)
		}
	}
	return pids
}

// Children are the pids of a process's children.
func Children(pid int) (pids []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is sound
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // that thread is gone
		}
		for word := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(word); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// isStopped is true of a process all of whose threads are stopped, or have
// ended: the signal reaches each in its own time.
func isStopped(pid int) bool {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid)) // the pattern is sound
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // that thread is gone
		}
		// tid (name) state ...; the name may hold anything.
		i := strings.LastIndexByte(string(b), ')')
		if i < 0 || i+2 >= len(b) || strings.IndexByte("TtZX", b[i+2]) < 0 {
			return false
		}
	}
	return true
}
