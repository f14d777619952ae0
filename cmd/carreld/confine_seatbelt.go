//go:build darwin || carrelmac

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/packet"
	"github.com/carrel-vm/carrel/guest/share"
)

// A process that gets here is within its sandbox, or believes it. Before it reads
// a byte that a guest wrote it tries what it must not be able to do, and what it
// must.

// shareFiles is as on Linux: handles and the runtime's own.
const shareFiles = 8192

// egressFiles and egressFileSize: two sockets for each of 1,024 connections,
// those of their look-ups, ports, and some; its audit log is the only file that it
// writes.
const (
	egressFiles    = 8192
	egressFileSize = 64 << 20
)

func confineShare(root *share.Root, readOnly bool, stores ...string) error {
	return confineFolders([]*share.Root{root}, readOnly, stores...)
}

// confineReview is confineShare for a process that has several folders, or none.
func confineReview(roots []*share.Root, readOnly bool, stores ...string) error {
	return confineFolders(roots, readOnly, stores...)
}

func confineFolders(roots []*share.Root, readOnly bool, stores ...string) error {
	unix.Umask(0) // modes are the guest's to choose, within 0777; its kernel has applied the task's umask
	if err := setLimits(map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: shareFiles}); err != nil {
		return err
	}
	s := scope{write: stores}
	for _, r := range roots {
		if readOnly {
			s.read = append(s.read, r.Path())
		} else {
			s.write = append(s.write, r.Path())
		}
	}
	if err := s.probe(); err != nil {
		return fmt.Errorf("verify the sandbox: %w", err)
	}
	for _, r := range roots {
		if _, err := os.ReadDir(r.Path()); err != nil {
			return fmt.Errorf("verify the sandbox: the folder itself cannot be read: %w", err)
		}
	}
	for _, dir := range stores {
		probe := filepath.Join(dir, ".probe")
		err := os.WriteFile(probe, nil, 0o600)
		if err == nil {
			// Another process of the same guest may try at the same moment.
			if err = os.Remove(probe); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		}
		if err != nil {
			return fmt.Errorf("verify the sandbox: its own folder cannot be written: %w", err)
		}
	}
	return nil
}

// confineEgress sets limits: a core file would hold secrets.
func confineEgress(audit string) error {
	if err := setLimits(map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: egressFiles, unix.RLIMIT_FSIZE: egressFileSize}); err != nil {
		return err
	}
	if err := (scope{write: []string{audit}, dials: true}).probe(); err != nil {
		return fmt.Errorf("verify the sandbox: %w", err)
	}
	return nil
}

// unpackFiles: its request, its answers, two files that it writes, one blob at a
// time and the runtime's own.
const unpackFiles = 64

// confineUnpack is for a process that unpacks layers: it has their folder, to read.
func confineUnpack(dir string) error {
	if err := setLimits(map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: unpackFiles, unix.RLIMIT_FSIZE: maxUnpacked}); err != nil {
		return err
	}
	if err := (scope{read: []string{dir}}).probe(); err != nil {
		return fmt.Errorf("verify the sandbox: %w", err)
	}
	if _, err := os.ReadDir(dir); err != nil {
		return fmt.Errorf("verify the sandbox: the folder of layers cannot be read: %w", err)
	}
	return nil
}

func setLimits(to map[int]uint64) error {
	for res, n := range to {
		var old unix.Rlimit
		if err := unix.Getrlimit(res, &old); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
		n = min(n, old.Max)
		if err := unix.Setrlimit(res, &unix.Rlimit{Cur: n, Max: n}); err != nil {
			return fmt.Errorf("limits: %w", err)
		}
	}
	return nil
}

// scope is what a process is to have of this host's files and of the network.
type scope struct {
	read, write []string
	dials       bool
}

// has says whether path lies in one of these folders. One that holds such a folder
// is none: its list is not in there.
func has(dirs []string, path string) bool {
	for _, d := range dirs {
		if rel, err := filepath.Rel(d, path); err == nil && filepath.IsLocal(rel) {
			return true
		}
	}
	return false
}

// probe tries what must not work. What is tried is there for every user, so that
// it would work without a sandbox; what the process was given is left out, and
// something has to be left of each kind.
func (s scope) probe() error {
	tried := 0
	for _, dir := range foreignFolders {
		if has(s.read, dir) || has(s.write, dir) {
			continue
		}
		tried++
		if _, err := os.ReadDir(dir); !refusedHere(err) {
			return fmt.Errorf("%s can still be read (%v)", dir, err)
		}
	}
	if tried == 0 {
		return fmt.Errorf("it was given all of %q, so that nothing is left to try", foreignFolders)
	}
	tried = 0
	for _, dir := range writableFolders {
		if has(s.write, dir) {
			continue
		}
		tried++
		probe := filepath.Join(dir, ".carrel-probe-"+strconv.Itoa(os.Getpid()))
		f, err := os.OpenFile(probe, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			f.Close()
			os.Remove(probe)
		}
		if !refusedHere(err) {
			return fmt.Errorf("a file can still be made in %s (%v)", dir, err)
		}
	}
	if tried == 0 {
		return fmt.Errorf("it was given all of %q, so that nothing is left to try", writableFolders)
	}
	if p, err := os.StartProcess(someProgram, []string{someProgram}, &os.ProcAttr{}); !refusedHere(err) {
		if err == nil {
			p.Wait()
		}
		return fmt.Errorf("a program can still be started (%v)", err)
	}
	if s.dials {
		return nil
	}
	// Whether somebody listens there or not: without a sandbox it is no EPERM.
	c, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9})
	if err == nil {
		c.Close()
	}
	if !refusedHere(err) {
		return fmt.Errorf("a server can still be called (%v)", err)
	}
	return nil
}

// refusedHere says whether a sandbox is why something failed: EPERM, and EACCES
// of what stands in for one on Linux.
func refusedHere(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }

// streamPair makes a connected pair of sockets, close-on-exec: as it happens, a
// packet's.
func streamPair() (a, b *os.File, err error) { return packet.Pair() }
