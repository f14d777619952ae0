//go:build unix

package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// getter sends one copy.
type getter struct {
	w io.Writer
	// odd is the first entry that is neither file, folder nor link; odds
	// counts them.
	odd  string
	odds int
	// foreign is the first that has a name, or leads to one, that is not UTF-8, for
	// which the wire has no form; foreigns counts them.
	foreign  string
	foreigns int
	buf      []byte
}

// get sends what is at the path, links as links. What is no file, folder or
// link, or has a name that cannot be sent, is left out and makes the copy end with
// an error that says so.
func get(conn io.Writer, req *wire.Get) error {
	whole := path.Clean(req.Path)
	base := path.Base(whole)
	if base == "/" {
		return errors.New("the guest's whole root cannot be copied; name a folder in it")
	}
	g := &getter{w: conn, buf: make([]byte, wire.DataChunk)}
	if err := g.entry(unix.AT_FDCWD, whole, base, 0); err != nil {
		return err
	}
	var left []string
	if g.odds > 0 {
		left = append(left, fmt.Sprintf("%d entries are neither file, folder nor link and were left out; the first is %.200q", g.odds, g.odd))
	}
	if g.foreigns > 0 {
		left = append(left, fmt.Sprintf("%d entries have names, or lead to names, that are not UTF-8 and cannot be copied; the first is %.200q (pack them there with tar, and copy that)", g.foreigns, g.foreign))
	}
	if len(left) > 0 {
		return errors.New(strings.Join(left, "; "))
	}
	return nil
}

// leave counts an entry that cannot be sent for its name.
func (g *getter) leave(name string) {
	if g.foreigns++; g.foreigns == 1 {
		g.foreign = name
	}
}

func (g *getter) send(f *wire.File) error {
	return wire.Write(g.w, &wire.Copy{Kind: &wire.Copy_File{File: f}})
}

// entry sends the entry base of the folder at parent under the given name.
func (g *getter) entry(parent int, base, name string, depth int) error {
	if depth >= maxDepth || len(name) > maxName {
		return fmt.Errorf("%.200q is too deep to copy", name)
	}
	if !utf8.ValidString(base) {
		g.leave(name)
		return nil
	}
	fail := func(err error) error { return &os.PathError{Op: "copy from the guest", Path: name, Err: err} }
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail(err)
	}
	f := &wire.File{Name: name, Mode: uint32(st.Mode) & 0o777}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target := make([]byte, maxName)
		n, err := unix.Readlinkat(parent, base, target)
		if err != nil {
			return fail(err)
		}
		if !utf8.Valid(target[:n]) {
			g.leave(name)
			return nil
		}
		f.Type, f.Target = wire.FileType_FILE_TYPE_SYMLINK, string(target[:n])
		return g.send(f)
	case unix.S_IFREG, unix.S_IFDIR:
	default:
		if g.odds++; g.odds == 1 {
			g.odd = name
		}
		return nil
	}
	// The entry may be another one by now: what was opened counts. Nothing
	// here waits for the other end of a pipe.
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	if err := unix.Fstat(fd, &st); err != nil {
		return fail(err)
	}
	f.Mode = uint32(st.Mode) & 0o777
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.Type, f.Size = wire.FileType_FILE_TYPE_REGULAR, st.Size
		return g.content(file, f)
	case unix.S_IFDIR:
		f.Type = wire.FileType_FILE_TYPE_DIRECTORY
		return g.folder(file, f, depth)
	}
	return fail(errors.New("it changed while it was copied"))
}

func (g *getter) content(file *os.File, f *wire.File) error {
	if err := g.send(f); err != nil {
		return err
	}
	for left := f.Size; left > 0; {
		n, err := file.Read(g.buf[:min(int64(len(g.buf)), left)])
		if err == io.EOF {
			return fmt.Errorf("%.200q became shorter while it was copied", f.Name)
		}
		if err != nil {
			return err
		}
		left -= int64(n)
		if err := wire.Write(g.w, &wire.Copy{Kind: &wire.Copy_Data{Data: g.buf[:n]}}); err != nil {
			return err
		}
	}
	return nil
}

func (g *getter) folder(dir *os.File, f *wire.File, depth int) error {
	if err := g.send(f); err != nil {
		return err
	}
	for {
		names, err := dir.Readdirnames(256)
		for _, n := range names {
			if err := g.entry(int(dir.Fd()), n, f.Name+"/"+n, depth+1); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
