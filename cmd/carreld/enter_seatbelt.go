//go:build darwin || carrelmac

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/review"
	"github.com/carrel-vm/carrel/guest/share/control"
	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/hypervisor/seatbelt"
)

// A process of Carrel on macOS enters its sandbox when it knows what it is to
// serve:
//
//	told what to serve ── its profile ──> sandbox-exec, in its place ──> itself again, within
//
// It is the same process all the way, with the same open files. sandbox-exec
// rather than sandbox_init(3), although Apple calls both deprecated: what takes C
// of our own would not be checked here at all, and an error of it might leave the
// process outside; sandbox-exec either becomes the program within the sandbox or
// ends. Before, the process has read nothing but what the daemon or the keeper
// said. Within, it tries what it must not be able to do (confine_seatbelt.go), so
// that one which was started as if it were within ends.

// inside is the first argument of a process that is in its sandbox; the second is
// the descriptor from which it reads again what it was told.
const inside = "inside"

// insideFile returns that descriptor's file, or nil to a process that is outside.
func insideFile(args []string) *os.File {
	if len(args) != 2 || args[0] != inside {
		return nil
	}
	fd, err := strconv.ParseUint(args[1], 10, 16)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "request")
}

// requestOf is what a process of a review, of a way out or of layers reads its request from.
func requestOf(args []string) *os.File {
	if f := insideFile(args); f != nil {
		return f
	}
	return os.NewFile(3, "request")
}

// toldShare takes the control socket of a share process and reads what it is to
// serve: from the socket outside of its sandbox, which it then enters, from
// what it is told by within.
func toldShare(args []string) (c *control.Conn, spec control.Spec, err error) {
	if f := insideFile(args); f != nil {
		defer f.Close()
		if err := json.NewDecoder(io.LimitReader(f, control.MaxSpec)).Decode(&spec); err != nil {
			return nil, spec, fmt.Errorf("read what to share: %w", err)
		}
		c, err := control.New(os.NewFile(3, "control"))
		return c, spec, err
	}
	fd, err := unix.FcntlInt(3, unix.F_DUPFD_CLOEXEC, 5) // 3 itself goes on to the process within
	if err != nil {
		return nil, spec, err
	}
	if c, err = control.New(os.NewFile(uintptr(fd), "control")); err != nil {
		return nil, spec, err
	}
	defer c.Close()
	if spec, err = c.Told(); err != nil {
		return nil, spec, err
	}
	err = func() error {
		set, err := rules.Compile(spec.Rules)
		if err != nil {
			return err
		}
		p := seatbelt.Process{}
		if err := addFolder(&p, spec.Path, spec.Dev, spec.Ino, set.Mode().Writes()); err != nil {
			return err
		}
		if spec.Store != "" {
			if err := add(&p, spec.Store, true); err != nil {
				return err
			}
		}
		b, err := json.Marshal(spec)
		if err != nil {
			return err
		}
		fd, err := spool(b)
		if err != nil {
			return err
		}
		return enter("share", p, fd)
	}()
	return nil, spec, errors.Join(err, c.Send(&control.Message{Kind: control.Ready, Error: control.Text(err)}, nil))
}

// enterReview has a review process enter its sandbox, in which it reads its
// request again.
func enterReview(args []string, req review.Request) error {
	if len(args) > 0 {
		return nil
	}
	p := seatbelt.Process{}
	for _, ref := range req.Shares {
		if _, err := os.Lstat(ref.Store); errors.Is(err, os.ErrNotExist) {
			continue // it has nothing, and its folder is not needed
		}
		if _, err := os.Lstat(ref.Path); errors.Is(err, os.ErrNotExist) {
			return &review.Error{Code: "share_gone", Cause: err.Error(), Cure: "bring the folder back under its name"}
		}
		if err := errors.Join(addFolder(&p, ref.Path, ref.Dev, ref.Ino, !readsOnly(req)), add(&p, ref.Store, true)); err != nil {
			return notConfined(err)
		}
	}
	var b bytes.Buffer
	if err := review.WriteRequest(&b, req); err != nil {
		return err
	}
	fd, err := spool(b.Bytes())
	if err == nil {
		err = enter("review", p, fd)
	}
	return notConfined(err)
}

// enterEgress has an egress process enter its sandbox, in which it reads its
// request again: that holds secrets, and waits in a socket's buffer meanwhile, on
// no disk.
func enterEgress(args []string, req guest.EdgeRequest) error {
	if len(args) > 0 {
		return nil
	}
	if err := os.Mkdir(req.Audit, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	p := seatbelt.Process{Dial: true}
	if err := add(&p, req.Audit, true); err != nil {
		return err
	}
	dir, err := seatbelt.KernelPath(filepath.Dir(req.Socket))
	if err != nil {
		return err
	}
	p.Listen = filepath.Join(dir, filepath.Base(req.Socket))
	if f := os.Getenv("SSL_CERT_FILE"); filepath.IsAbs(f) {
		if at, err := seatbelt.KernelPath(f); err == nil {
			p.Files = append(p.Files, at)
		}
	}
	var b bytes.Buffer
	if err := guest.WriteEdgeRequest(&b, req); err != nil {
		return err
	}
	fd, err := hold(b.Bytes())
	if err != nil {
		return err
	}
	return enter("egress", p, fd)
}

// enterUnpack has a process that unpacks layers enter its sandbox, in which it has
// the folder of blobs, and the two files that it writes open already.
func enterUnpack(args []string, dir string, request []byte) error {
	if len(args) > 0 {
		return nil
	}
	p := seatbelt.Process{}
	if err := add(&p, dir, false); err != nil {
		return err
	}
	fd, err := spool(request)
	if err != nil {
		return err
	}
	return enter("unpack", p, fd)
}

// add gives p a folder of ours.
func add(p *seatbelt.Process, dir string, write bool) error {
	at, err := seatbelt.KernelPath(dir)
	if err != nil {
		return err
	}
	give(p, at, write)
	return nil
}

// addFolder gives p a shared folder, which has to be the one that was granted.
func addFolder(p *seatbelt.Process, dir string, dev, ino uint64, write bool) error {
	at, err := seatbelt.KernelFolder(dir, dev, ino)
	if err != nil {
		return err
	}
	give(p, at, write)
	return nil
}

func give(p *seatbelt.Process, at string, write bool) {
	if write {
		p.Write = append(p.Write, at)
	} else {
		p.Read = append(p.Read, at)
	}
}

// inherited closes what this process was given beside its own descriptors. Within
// its sandbox it has done it before, and holds more.
func inherited(args []string, first int) error {
	if len(args) > 0 {
		return nil
	}
	return closeInherited(first)
}

// enter becomes the same program within the sandbox, which reads from descriptor
// fd what it was told. It returns with an error only.
func enter(verb string, p seatbelt.Process, fd int) error {
	defer unix.Close(fd)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if p.Program, err = seatbelt.KernelPath(self); err != nil {
		return err
	}
	profile, err := p.Profile()
	if err != nil {
		return err
	}
	tool := sandboxExec(self)
	err = syscall.Exec(tool, []string{tool, "-p", profile, self, verb, inside, strconv.Itoa(fd)}, os.Environ())
	return fmt.Errorf("enter the sandbox with %s, which macOS brings: %w", tool, err)
}

// spool returns the descriptor of a file of these bytes that has no name.
func spool(b []byte) (int, error) {
	f, err := os.CreateTemp("", "carrel-")
	if err != nil {
		return -1, err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return -1, err
	}
	if _, err := f.Write(b); err != nil {
		return -1, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return -1, err
	}
	return keepOpen(f)
}

// hold returns a descriptor from which these bytes can be read, and keeps them in
// memory.
func hold(b []byte) (int, error) {
	out, in, err := streamPair()
	if err != nil {
		return -1, err
	}
	defer in.Close()
	defer out.Close()
	rc, err := in.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := 0
	cerr := rc.Control(func(fd uintptr) {
		var room int
		if room, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF); err == nil && room < 2*len(b) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 2*len(b)) // as far as the host lets it
		}
		if err == nil { // once, and without waiting: the reader is what this process becomes
			n, err = unix.Write(int(fd), b)
		}
	})
	if err = errors.Join(cerr, err); err != nil || n < len(b) {
		return -1, fmt.Errorf("a request of %d bytes does not fit a socket's buffer (%d went in): %w (give the guest fewer rules)", len(b), n, errors.Join(err, io.ErrShortWrite))
	}
	return keepOpen(out)
}

// keepOpen duplicates f's descriptor for what this process becomes. The number is
// one that is free: Go's runtime has descriptors of its own, which nothing may
// take the place of.
func keepOpen(f *os.File) (fd int, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := rc.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD, 3) })
	return fd, errors.Join(cerr, err)
}
