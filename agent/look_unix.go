//go:build unix

package agent

import (
	"errors"
	"io"
	"os"
	"path"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// lookAt says what is at a path and, of a folder, what is in it, without a byte of
// content. It returns how many entries it left out: beyond wire.MaxLook, or with names
// that are not UTF-8, for which the wire has no form.
func lookAt(conn io.Writer, req *wire.Get) (leftOut uint32, err error) {
	whole := path.Clean(req.Path)
	self, dir, err := glance(unix.AT_FDCWD, whole, path.Base(whole))
	if err != nil {
		return 0, err
	}
	if err := sendFile(conn, self); err != nil || req.SelfOnly || !dir {
		return 0, err
	}
	fd, err := unix.Openat(unix.AT_FDCWD, whole, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "look at", Path: whole, Err: err}
	}
	f := os.NewFile(uintptr(fd), whole)
	defer f.Close()
	sent := 0
	for {
		names, err := f.Readdirnames(256)
		for _, n := range names {
			if sent == wire.MaxLook || !utf8.ValidString(n) {
				leftOut++
				continue
			}
			e, _, err := glance(fd, n, n)
			switch {
			case errors.Is(err, unix.ENOENT): // gone meanwhile
				continue
			case err != nil:
				return 0, err
			}
			if err := sendFile(conn, e); err != nil {
				return 0, err
			}
			sent++
		}
		if err == io.EOF {
			return leftOut, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// glance describes one entry, links as links.
func glance(parent int, at, name string) (f *wire.File, dir bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(parent, at, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, false, &os.PathError{Op: "look at", Path: name, Err: err}
	}
	f = described(name, &st)
	if f.Type == wire.FileType_FILE_TYPE_SYMLINK {
		target := make([]byte, maxName)
		n, err := unix.Readlinkat(parent, at, target)
		if err != nil {
			return nil, false, &os.PathError{Op: "look at", Path: name, Err: err}
		}
		if f.Target = string(target[:n]); !utf8.ValidString(f.Target) {
			f.Target = "?"
		}
	}
	return f, f.Type == wire.FileType_FILE_TYPE_DIRECTORY, nil
}

// described is what a look says of an entry; of what is neither file, folder nor
// link the type is left open.
func described(name string, st *unix.Stat_t) *wire.File {
	f := &wire.File{Name: name, Mode: uint32(st.Mode) & 0o777, MtimeNanos: st.Mtim.Nano()}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.Type, f.Whole = wire.FileType_FILE_TYPE_REGULAR, st.Size
	case unix.S_IFDIR:
		f.Type = wire.FileType_FILE_TYPE_DIRECTORY
	case unix.S_IFLNK:
		f.Type = wire.FileType_FILE_TYPE_SYMLINK
	}
	return f
}

// readPart sends some bytes of one regular file, announced by what the file is.
func readPart(conn io.Writer, req *wire.Get) error {
	name := path.Clean(req.Path)
	fail := func(err error) error { return &os.PathError{Op: "read", Path: name, Err: err} }
	if req.Offset < 0 || req.Most < 0 {
		return fail(unix.EINVAL)
	}
	// Nothing here waits for the other end of a pipe.
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail(err)
	}
	f := described(path.Base(name), &st)
	if f.Type != wire.FileType_FILE_TYPE_REGULAR {
		return fail(errors.New("it is no regular file"))
	}
	b := make([]byte, min(req.Most, wire.MaxPart))
	n := 0
	for n < len(b) { // files of /proc have size 0, and content
		m, err := unix.Pread(fd, b[n:], req.Offset+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fail(err)
		}
		if m == 0 {
			break
		}
		n += m
	}
	f.Size = int64(n)
	if err := sendFile(conn, f); err != nil {
		return err
	}
	for b = b[:n]; len(b) > 0; {
		k := min(len(b), wire.DataChunk)
		if err := wire.Write(conn, &wire.Copy{Kind: &wire.Copy_Data{Data: b[:k]}}); err != nil {
			return err
		}
		b = b[k:]
	}
	return nil
}

func sendFile(w io.Writer, f *wire.File) error {
	return wire.Write(w, &wire.Copy{Kind: &wire.Copy_File{File: f}})
}
