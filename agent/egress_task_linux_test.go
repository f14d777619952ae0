package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// TestTaskOfConnection: the host is told whose a connection is, with control
// groups, also when the task has made one of its own, and without.
func TestTaskOfConnection(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an agent that is root starts tasks with groups, which a user namespace of one user does not have")
	}
	way := inside(t)
	if way == "" {
		return
	}
	connect := func(port int) string { return fmt.Sprintf("exec 3<>/dev/tcp/93.184.216.34/%d; cat <&3", port) }
	try := func(t *testing.T, cgroup string, scripts map[string]string) {
		h, o := guestWith(t, way, &wire.Setup{MaxTasks: 4}, Options{Cgroup: cgroup})
		for id, script := range scripts {
			s := h.exec(&wire.Exec{Argv: []string{"/bin/bash", "-c", script}, Id: id, Cwd: "/"})
			s.wait()
			s.wantExit(0, 0)
		}
		wantRead(t, mustDial(t, "93.184.216.34:3"), "93.184.216.34:3") // nobody's
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, open := range o.opens {
			if want := map[uint32]string{1: "01TASK", 2: "02TASK"}[open.Port]; open.Task != want {
				t.Errorf("%v is said to be the task's %q, want %q", open, open.Task, want)
			}
		}
		if len(o.opens) != len(scripts)+1 {
			t.Errorf("%d connections", len(o.opens))
		}
	}
	t.Run("processes", func(t *testing.T) {
		try(t, "", map[string]string{"01TASK": connect(1), "02TASK": connect(2)})
	})
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("cgroup2", dir, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	group := filepath.Join(dir, fmt.Sprintf("carrel-test-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Rmdir(group) }()
	t.Run("groups", func(t *testing.T) {
		sub := group + "/02TASK/sub"
		try(t, group, map[string]string{
			"01TASK": connect(1),
			"02TASK": "mkdir " + sub + "; echo $$ >" + sub + "/cgroup.procs; " + connect(2),
		})
	})
	t.Run("inodes", func(t *testing.T) {
		a := filepath.Join(group, "03TASK")
		if err := os.Mkdir(a, 0o755); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = syscall.Rmdir(a) }()
		st, err := os.Stat(a)
		if err != nil {
			t.Fatal(err)
		}
		o := newOwners(group)
		defer o.close()
		ino := st.Sys().(*syscall.Stat_t).Ino
		if got := o.byInode(ino); got != "03TASK" {
			t.Errorf("inode %d is the task's %q", ino, got)
		}
		if got := o.byInode(ino + 1<<40); got != "" {
			t.Errorf("an inode of no group's is %q", got)
		}
	})
}
