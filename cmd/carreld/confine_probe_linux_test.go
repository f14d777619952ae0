package main

import (
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// try is something that a process tries before and after it confines itself.
type try struct {
	name string
	f    func() error
}

// unconfined are tries that neither a keeper nor an egress process has any
// business with: they work before and are denied after. dir is the folder that
// is left to the process.
func unconfined(dir string) []try {
	elsewhere := filepath.Join(filepath.Dir(dir), "victim")
	os.WriteFile(elsewhere, nil, 0o600)
	path, _ := unix.BytePtrFromString(elsewhere)
	name, _ := unix.BytePtrFromString("carrel-test-queue")
	at := unix.AT_FDCWD
	call := func(nr uintptr, a ...uintptr) func() error {
		return func() error {
			var x [6]uintptr
			copy(x[:], a)
			if _, _, e := unix.Syscall6(nr, x[0], x[1], x[2], x[3], x[4], x[5]); e != 0 {
				return e
			}
			return nil
		}
	}
	// clone starts a process that ends at once.
	clone := func(flags uintptr) func() error {
		return func() error {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, flags|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
			if e == 0 && pid == 0 {
				for {
					unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
				}
			}
			if e != 0 {
				return e
			}
			_, err := unix.Wait4(int(pid), nil, 0, nil)
			return err
		}
	}
	parent := uintptr(os.Getppid())
	return []try{
		{"process", clone(0)},
		{"namespaces", clone(unix.CLONE_NEWUSER | unix.CLONE_NEWNET)},
		{"mode elsewhere", call(unix.SYS_FCHMODAT2, uintptr(at), uintptr(unsafe.Pointer(path)), 0o640, 0)},
		{"shared memory", func() error {
			id, _, e := unix.Syscall(unix.SYS_SHMGET, 0, 4096, 0o600)
			if e != 0 {
				return e
			}
			unix.Syscall(unix.SYS_SHMCTL, id, 0, 0) // IPC_RMID
			return nil
		}},
		{"message queue", func() error {
			fd, _, e := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), unix.O_CREAT|unix.O_RDWR, 0o600, 0, 0, 0)
			if e != 0 {
				return e
			}
			unix.Close(int(fd))
			unix.Syscall(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(name)), 0, 0)
			return nil
		}},
		{"signal to a thread", call(unix.SYS_TGKILL, parent, parent, 0)},
		{"signal by tkill", call(unix.SYS_TKILL, parent, 0)},
	}
}

// confinable are tries that work before and after: what the Go runtime needs.
func confinable() []try {
	return []try{
		{"thread", func() error {
			// More locked goroutines than there are idle threads.
			var here, all sync.WaitGroup
			here.Add(16)
			for range 16 {
				all.Go(func() {
					runtime.LockOSThread()
					defer runtime.UnlockOSThread()
					here.Done()
					here.Wait()
				})
			}
			all.Wait()
			return nil
		}},
		{"signal to itself", func() error { return unix.Tgkill(os.Getpid(), unix.Gettid(), 0) }},
	}
}

func names(tries []try) (out []string) {
	for _, t := range tries {
		out = append(out, t.name)
	}
	return out
}
