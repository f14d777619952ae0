package agent

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/stage"
)

// owners tell which task has opened a connection: the kernel says in which
// control group its socket was made, and each task has one of its own. Where
// there are no control groups, the task is that of a process which has the
// socket open. It is for people who read why something was refused; nothing is
// decided by it, and where it cannot be told it is left open.
type owners struct {
	// root is the folder of the tasks' groups, open, or nil.
	root *os.File

	mu   sync.Mutex
	diag *netlink.Conn
}

const (
	// diagWait bounds a question to the kernel, which answers at once.
	diagWait = time.Second
	// maxLook is how many processes, or open files of one, are looked at.
	maxLook = 4096
)

// newOwners returns nil where the kernel does not tell of sockets.
func newOwners(cgroup string) *owners {
	diag, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil
	}
	o := &owners{diag: diag}
	if cgroup != "" {
		o.root, _ = os.Open(cgroup)
	}
	return o
}

func (o *owners) close() {
	if o == nil {
		return
	}
	_ = o.diag.Close()
	if o.root != nil {
		_ = o.root.Close()
	}
}

// task returns the task whose socket is connected from from to to, or "".
func (o *owners) task(from, to netip.AddrPort) string {
	if o == nil {
		return ""
	}
	s, err := o.ask(from, to)
	if err != nil {
		return ""
	}
	name := ""
	if o.root != nil {
		name = o.byGroup(s.group)
	} else {
		name = byProcess(s.inode)
	}
	if !validID(name) {
		return ""
	}
	return name
}

// byGroup finds the task of a control group by the group's id.
func (o *owners) byGroup(id uint64) string {
	path, err := o.path(id)
	if err != nil {
		return o.byInode(id)
	}
	rel, err := filepath.Rel(o.root.Name(), path)
	if err != nil {
		return ""
	}
	// A task may have made groups beneath its own.
	name, _, _ := strings.Cut(rel, "/")
	return name
}

// byInode is for an agent that may not open files by handles: it finds the
// tasks' own groups, whose folders' inodes are their ids.
func (o *owners) byInode(id uint64) string {
	groups, err := os.ReadDir(o.root.Name())
	if err != nil {
		return ""
	}
	for _, g := range groups[:min(len(groups), maxLook)] {
		var st unix.Stat_t
		if g.IsDir() && unix.Fstatat(int(o.root.Fd()), g.Name(), &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Ino == id {
			return g.Name()
		}
	}
	return ""
}

// byProcess finds a marked process that has a socket open.
func byProcess(inode uint32) string {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return ""
	}
	want := fmt.Sprintf("socket:[%d]", inode)
	for _, p := range processes[:min(len(processes), maxLook)] {
		if c := p.Name()[0]; c < '0' || c > '9' {
			continue
		}
		id := marked("/proc/" + p.Name() + "/environ")
		if id == "" {
			continue
		}
		files, _ := os.ReadDir("/proc/" + p.Name() + "/fd")
		for _, f := range files[:min(len(files), maxLook)] {
			if to, err := os.Readlink("/proc/" + p.Name() + "/fd/" + f.Name()); err == nil && to == want {
				return id
			}
		}
	}
	return ""
}

// marked returns the task that a process's environment names.
func marked(environ string) string {
	f, err := os.Open(environ)
	if err != nil {
		return ""
	}
	b, _ := io.ReadAll(io.LimitReader(f, stage.MaxSpec))
	_ = f.Close()
	_, id, ok := bytes.Cut(append([]byte{0}, b...), []byte("\x00"+marker+"="))
	if !ok {
		return ""
	}
	id, _, _ = bytes.Cut(id, []byte{0})
	return string(id)
}

// Sizes and places in linux/inet_diag.h.
const (
	diagByFamily  = 20 // SOCK_DIAG_BY_FAMILY
	diagReqLen    = 56 // struct inet_diag_req_v2
	diagMsgLen    = 72 // struct inet_diag_msg
	diagInode     = 68 // inet_diag_msg.idiag_inode
	diagCgroupID  = 21 // INET_DIAG_CGROUP_ID
	stateListen   = 10 // TCP_LISTEN
	stateTimeWait = 6  // TCP_TIME_WAIT
)

// socket is what the kernel tells of one.
type socket struct {
	inode uint32
	group uint64 // 0: CONFIG_SOCK_CGROUP_DATA is off
}

// ask asks for the socket of one connection.
func (o *owners) ask(from, to netip.AddrPort) (s socket, err error) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	req := make([]byte, diagReqLen)
	req[0], req[1] = unix.AF_INET, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(req[4:], ^uint32(0)) // in any state
	binary.BigEndian.PutUint16(req[8:], from.Port())
	binary.BigEndian.PutUint16(req[10:], to.Port())
	f, t := from.Addr().As4(), to.Addr().As4()
	copy(req[12:], f[:])
	copy(req[28:], t[:])
	binary.NativeEndian.PutUint64(req[48:], ^uint64(0)) // INET_DIAG_NOCOOKIE
	o.mu.Lock()
	defer o.mu.Unlock()
	_ = o.diag.SetDeadline(time.Now().Add(diagWait))
	answers, err := o.diag.Execute(netlink.Message{
		Header: netlink.Header{Type: diagByFamily, Flags: netlink.Request},
		Data:   req,
	})
	if err != nil {
		return s, err
	}
	if len(answers) != 1 || len(answers[0].Data) < diagMsgLen {
		return s, fmt.Errorf("the kernel's answer about a socket has %d parts", len(answers))
	}
	b := answers[0].Data
	// Were the client gone, the kernel would tell of our own listener.
	if state := b[1]; state == stateListen || state == stateTimeWait {
		return s, os.ErrNotExist
	}
	s.inode = binary.NativeEndian.Uint32(b[diagInode:])
	attrs, err := netlink.NewAttributeDecoder(b[diagMsgLen:])
	if err != nil {
		return s, err
	}
	for attrs.Next() {
		if attrs.Type() == diagCgroupID {
			s.group = attrs.Uint64()
		}
	}
	return s, attrs.Err()
}

// handleKernfs is the type of a file handle that holds a control group's id
// alone: FILEID_KERNFS (linux/exportfs.h).
const handleKernfs = 0xfe

// path finds a control group by its id.
func (o *owners) path(id uint64) (string, error) {
	h := unix.NewFileHandle(handleKernfs, (*[8]byte)(unsafe.Pointer(&id))[:])
	fd, err := unix.OpenByHandleAt(int(o.root.Fd()), h, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
}
