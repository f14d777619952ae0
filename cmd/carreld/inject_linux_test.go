package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A disk that fails is made by the kernel itself: the daemon is started under a
// seccomp filter that asks this test before each call that makes something
// durable or takes room (seccomp_unotify(2)). What the daemon starts inherits the
// filter, so that keepers and SQLite meet the same disk, and no program has a
// word of it.

// watchedDaemon in the environment makes this test's program the daemon that it
// names, under such a filter.
const watchedDaemon = "CARREL_TEST_WATCHED"

// writes are the calls that a disk without room, or a read-only one, refuses;
// syncs are those that a disk which breaks fails.
var (
	writes = []uint32{unix.SYS_PWRITE64, unix.SYS_OPENAT, unix.SYS_MKDIRAT, unix.SYS_FALLOCATE}
	edits  = []uint32{unix.SYS_PWRITE64, unix.SYS_OPENAT, unix.SYS_MKDIRAT, unix.SYS_FALLOCATE, unix.SYS_RENAMEAT, unix.SYS_FTRUNCATE}
	syncs  = []uint32{unix.SYS_FSYNC, unix.SYS_FDATASYNC}
)

// disk answers for the file systems of one world.
type disk struct {
	bin   string // whose programs meet it; what tasks run does not
	ours  *os.File
	refer *os.File // the watched side's

	mu    sync.Mutex
	fault map[uint32]syscall.Errno
	// failed counts the calls that were failed.
	failed atomic.Int64
	asked  atomic.Int64
}

// fail makes these calls fail from now on; without any the disk is sound again.
func (d *disk) fail(errno syscall.Errno, calls ...uint32) {
	fault := map[uint32]syscall.Errno{}
	for _, c := range calls {
		fault[c] = errno
	}
	d.mu.Lock()
	d.fault = fault
	d.mu.Unlock()
}

// wrap makes a daemon that is not started yet run under the filter.
func (d *disk) wrap(cmd *exec.Cmd) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	d.ours, d.refer = os.NewFile(uintptr(pair[0]), "listener"), os.NewFile(uintptr(pair[1]), "watched")
	cmd.Env = append(cmd.Env, watchedDaemon+"="+cmd.Path)
	cmd.Path = self
	cmd.ExtraFiles = append(cmd.ExtraFiles, d.refer) // descriptor 4
	return nil
}

// watch answers for a daemon that was started, until it and all that it started
// are gone.
func (d *disk) watch() error {
	d.refer.Close()
	defer d.ours.Close()
	word, rights := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, m, _, _, err := unix.Recvmsg(int(d.ours.Fd()), word, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		return fmt.Errorf("the watched daemon handed no listener over: %v", err)
	}
	list, err := unix.ParseSocketControlMessage(rights[:m])
	if err != nil || len(list) != 1 {
		return fmt.Errorf("the watched daemon's listener: %v", err)
	}
	fds, err := unix.ParseUnixRights(&list[0])
	if err != nil {
		return err
	}
	go d.answer(fds[0])
	return nil
}

// notice and reply are struct seccomp_notif and seccomp_notif_resp of
// include/uapi/linux/seccomp.h.
type notice struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type reply struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

func (d *disk) answer(fd int) {
	defer unix.Close(fd)
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err != nil && !errors.Is(err, unix.EINTR) || p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
			return
		} else if p[0].Revents&unix.POLLIN == 0 {
			continue
		}
		var q notice
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&q))); e != 0 {
			continue // who asked was killed meanwhile
		}
		d.asked.Add(1)
		r := reply{id: q.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if errno := d.verdict(&q); errno != 0 {
			d.failed.Add(1)
			r.errno, r.flags = -int32(errno), 0
		}
		unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	}
}

func (d *disk) verdict(q *notice) syscall.Errno {
	d.mu.Lock()
	errno := d.fault[uint32(q.nr)]
	d.mu.Unlock()
	if errno == 0 {
		return 0
	}
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", q.pid)); err != nil || !strings.HasPrefix(exe, filepath.Join(d.bin, "carreld")) {
		return 0
	}
	if q.nr == unix.SYS_OPENAT && !d.makes(q) {
		return 0
	}
	return errno
}

// makes says whether an open that may make a file does: one of a file that is
// there takes no room.
func (d *disk) makes(q *notice) bool {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", q.pid))
	if err != nil {
		return false
	}
	defer mem.Close()
	b := make([]byte, unix.PathMax)
	n, _ := mem.ReadAt(b, int64(q.args[1]))
	path, _, whole := strings.Cut(string(b[:n]), "\x00")
	_, err = os.Lstat(path)
	return whole && filepath.IsAbs(path) && errors.Is(err, os.ErrNotExist)
}

// runWatched becomes a daemon whose disk this test is asked for.
func runWatched(program string) error {
	runtime.LockOSThread() // the filter is this thread's, and exec keeps it
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	equal := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	ask := []unix.SockFilter{load(0)} // seccomp_data.nr
	for _, nr := range append(append([]uint32{}, edits...), syncs...) {
		if nr != unix.SYS_OPENAT {
			ask = append(ask, equal(nr, 0, 1), ret(unix.SECCOMP_RET_USER_NOTIF))
		}
	}
	ask = append(ask, equal(unix.SYS_OPENAT, 0, 3), load(16+2*8), // args[2], the flags: what makes a file takes room
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: unix.O_CREAT},
		ret(unix.SECCOMP_RET_USER_NOTIF), ret(unix.SECCOMP_RET_ALLOW))
	prog := unix.SockFprog{Len: uint16(len(ask)), Filter: &ask[0]}
	fd, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return fmt.Errorf("install the filter: %w (these tests run as root)", e)
	}
	if err := unix.Sendmsg(4, []byte{1}, unix.UnixRights(int(fd)), nil, 0); err != nil {
		return err
	}
	unix.CloseOnExec(4)
	os.Unsetenv(watchedDaemon)
	return syscall.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ())
}
