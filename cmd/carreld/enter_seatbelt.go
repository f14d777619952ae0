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
	"slices"
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

// inside is the argument of a process that is in its sandbox.
const inside = "inside"

// toldShare takes the control socket of a share process and reads what it is to
// serve: from the socket outside of its sandbox, which it then enters, from
// descriptor 4 within.
func toldShare(args []string) (c *control.Conn, spec control.Spec, err error) {
	if slices.Equal(args, []string{inside}) {
		f := os.NewFile(4, "spec")
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
		if err := add(&p, spec.Path, set.Mode().Writes()); err != nil {
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
		if err := spool(b, 4); err != nil {
			return err
		}
		return enter("share", p)
	}()
	return nil, spec, errors.Join(err, c.Send(&control.Message{Kind: control.Ready, Error: control.Text(err)}, nil))
}

// enterReview has a review process enter its sandbox, in which it reads its
// request again.
func enterReview(args []string, req review.Request) error {
	if slices.Equal(args, []string{inside}) {
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
		if err := errors.Join(add(&p, ref.Path, !readsOnly(req)), add(&p, ref.Store, true)); err != nil {
			return notConfined(err)
		}
	}
	var b bytes.Buffer
	if err := review.WriteRequest(&b, req); err != nil {
		return err
	}
	err := spool(b.Bytes(), 3)
	if err == nil {
		err = enter("review", p)
	}
	return notConfined(err)
}

// enterEgress has an egress process enter its sandbox, in which it reads its
// request again: that holds secrets, and waits in a socket's buffer meanwhile, on
// no disk.
func enterEgress(args []string, req guest.EdgeRequest) error {
	if slices.Equal(args, []string{inside}) {
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
	if err := hold(b.Bytes(), 3); err != nil {
		return err
	}
	return enter("egress", p)
}

// add gives p a folder.
func add(p *seatbelt.Process, dir string, write bool) error {
	at, err := seatbelt.KernelPath(dir)
	if err != nil {
		return err
	}
	if write {
		p.Write = append(p.Write, at)
	} else {
		p.Read = append(p.Read, at)
	}
	return nil
}

// enter becomes the same program within the sandbox. It returns with an error
// only.
func enter(verb string, p seatbelt.Process) error {
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
	err = syscall.Exec(tool, []string{tool, "-p", profile, self, verb, inside}, os.Environ())
	return fmt.Errorf("enter the sandbox with %s, which macOS brings: %w", tool, err)
}

// spool makes bytes the file with descriptor fd of the process within, which has
// no name.
func spool(b []byte, fd int) error {
	f, err := os.CreateTemp("", "carrel-")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	if _, err := f.Write(b); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return inherit(f, fd)
}

// hold makes bytes what is read from descriptor fd within, and keeps them in
// memory.
func hold(b []byte, fd int) error {
	out, in, err := streamPair()
	if err != nil {
		return err
	}
	defer in.Close()
	defer out.Close()
	// One write that does not wait: the reader is what this process becomes.
	if err := room(in, len(b)); err != nil {
		return err
	}
	rc, err := in.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	cerr := rc.Control(func(own uintptr) { n, err = unix.Write(int(own), b) })
	if err = errors.Join(cerr, err); err != nil || n < len(b) {
		return fmt.Errorf("a request of %d bytes does not fit a socket's buffer (%d went in): %w (give the guest fewer rules)", len(b), n, errors.Join(err, io.ErrShortWrite))
	}
	return inherit(out, fd)
}

// room has a socket take n bytes before somebody reads, as far as the host lets it.
func room(f *os.File, n int) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) {
		var is int
		if is, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF); err == nil && is < 2*n {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 2*n)
		}
	})
	return errors.Join(cerr, err)
}

// inherit makes f the descriptor fd of what this process becomes. It blocks
// there, as a request's pipe does.
func inherit(f *os.File, fd int) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(own uintptr) { err = inheritAs(int(own), fd) })
	return errors.Join(cerr, err)
}
