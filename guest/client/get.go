package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// Get copies a file or folder out of a guest. A local that is a folder, or ends
// in a separator, is copied into; else its last part is the copy's new name.
//
// What comes is the guest's word. It is written beneath local's folder, through
// no link, whoever made that link; each file appears whole or not at all; modes
// are masked with 0777 and the umask; links that lead out of the copy are left
// out.
func (c *Client) Get(ctx context.Context, guest, from, local string, o CopyOptions) error {
	o.fill()
	if err := CheckName("guest", guest); err != nil {
		return err
	}
	if err := checkGuestPath(from); err != nil {
		return err
	}
	op := fmt.Sprintf("copy %s out of guest %s", from, guest)
	dir, name, err := destination(local, path.Base(path.Clean(from)))
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	defer root.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := c.files.Get(ctx, connect.NewRequest(&api.GetRequest{Guest: guest, Path: path.Clean(from), User: o.User}))
	if err != nil {
		return wrap(op, err)
	}
	defer st.Close()
	g := &getter{o: o, name: name, dirs: []openDir{{root: root}}}
	defer g.close()
	for st.Receive() {
		switch m := st.Msg().Kind.(type) {
		case *api.GetResponse_File:
			err = g.entry(m.File)
		case *api.GetResponse_Data:
			err = g.data(m.Data)
		default:
			err = errors.New("a message of no known kind came")
		}
		if err != nil {
			cancel()
			return wrap(op, err)
		}
	}
	if err := st.Err(); err != nil {
		return wrap(op, err)
	}
	return wrap(op, g.end())
}

// destination splits local into the folder that is written to, which exists,
// and the name of the copy in it.
func destination(local, base string) (dir, name string, err error) {
	into := strings.HasSuffix(local, "/") || strings.HasSuffix(local, string(filepath.Separator))
	if fi, err := os.Stat(local); err == nil && fi.IsDir() {
		into = true
	} else if into {
		return "", "", fmt.Errorf("%s is not a folder", local)
	}
	dir, name = filepath.Dir(local), filepath.Base(local)
	if into {
		dir, name = local, base
	}
	if name == "/" || name == "." || name == ".." || !filepath.IsLocal(name) {
		return "", "", fmt.Errorf("%.200q cannot be the name of the copy: name it", name)
	}
	return dir, name, nil
}

// getter writes what a guest sends.
type getter struct {
	o    CopyOptions
	name string // what the copy is called here
	top  string // what the guest calls it

	// dirs are the folders on the way to the last entry, each opened in the
	// one before it and known to be a folder, not a link.
	dirs []openDir

	entries int
	bytes   int64

	file       *os.File // being written, under temp in its folder
	temp, base string
	left       int64
}

type openDir struct {
	name string
	root *os.Root
}

func (g *getter) entry(f *api.File) error {
	if f == nil {
		return errors.New("an empty entry came")
	}
	if err := g.finish(); err != nil {
		return err
	}
	if g.entries++; g.entries > maxEntries {
		return fmt.Errorf("more than %d entries came", maxEntries)
	}
	if err := entryCheck(f); err != nil {
		return fmt.Errorf("the guest sent the name %.200q: %w", f.Name, err)
	}
	first, rest, _ := strings.Cut(f.Name, "/")
	switch {
	case g.entries == 1 && rest == "":
		g.top = first
	case g.entries == 1 || first != g.top || rest == "":
		return fmt.Errorf("the guest sent %.200q, which is not part of what was asked for", f.Name)
	}
	name := g.name
	if rest != "" {
		name += "/" + rest
	}
	if !filepath.IsLocal(filepath.FromSlash(name)) {
		return fmt.Errorf("the guest sent the name %.200q, which this system cannot have", f.Name)
	}
	dir, err := g.enter(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	switch f.Type {
	case api.FileType_FILE_TYPE_DIRECTORY:
		err := dir.Mkdir(base, fs.FileMode(f.Mode&0o777)|0o700)
		if errors.Is(err, fs.ErrExist) {
			if fi, lerr := dir.Lstat(base); lerr == nil && fi.IsDir() {
				err = nil
			}
		}
		return err
	case api.FileType_FILE_TYPE_SYMLINK:
		if !linkStays(name, f.Target) {
			g.o.Warn(fmt.Sprintf("left out the link %q: it leads to %q, out of the copy", name, clip(f.Target)))
			return nil
		}
		if fi, err := dir.Lstat(base); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
			if err := dir.Remove(base); err != nil {
				return err
			}
		}
		return dir.Symlink(f.Target, base)
	}
	if g.bytes+f.Size > g.o.MaxBytes {
		return tooLarge(g.o.MaxBytes)
	}
	g.base, g.temp, g.left = base, ".carrel-"+rand.Text(), f.Size
	g.file, err = dir.OpenFile(g.temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(f.Mode&0o777))
	return err
}

func (g *getter) data(p []byte) error {
	switch {
	case g.file == nil:
		return errors.New("the guest sent data without a file")
	case int64(len(p)) > g.left:
		return errors.New("the guest sent more bytes than it said")
	}
	n, err := g.file.Write(p)
	g.left -= int64(n)
	g.bytes += int64(n)
	g.o.OnBytes(g.bytes)
	return err
}

// finish gives the last file its name, which replaces a link of that name
// rather than follow it.
func (g *getter) finish() error {
	if g.file == nil {
		return nil
	}
	if g.left > 0 {
		return fmt.Errorf("the guest sent %d bytes too few of %.200q: %w", g.left, g.base, io.ErrUnexpectedEOF)
	}
	dir := g.dirs[len(g.dirs)-1].root
	err := g.file.Close()
	g.file = nil
	if err == nil {
		err = dir.Rename(g.temp, g.base)
	}
	if err != nil {
		dir.Remove(g.temp)
	}
	return err
}

func (g *getter) end() error {
	if g.entries == 0 {
		return errors.New("the guest sent nothing")
	}
	return g.finish()
}

// close removes a file that did not become whole.
func (g *getter) close() {
	if g.file != nil {
		g.file.Close()
		g.dirs[len(g.dirs)-1].root.Remove(g.temp)
		g.file = nil
	}
	for _, d := range g.dirs[1:] {
		d.root.Close()
	}
}

// enter returns the folder at the slash-separated path p. Each part is looked
// at, opened, and looked at again through what was opened, so that a link
// cannot slip in between, not even one that stays beneath the root.
func (g *getter) enter(p string) (*os.Root, error) {
	var parts []string
	if p != "." {
		parts = strings.Split(p, "/")
	}
	same := 1
	for same < len(g.dirs) && same <= len(parts) && g.dirs[same].name == parts[same-1] {
		same++
	}
	for _, d := range g.dirs[same:] {
		d.root.Close()
	}
	g.dirs = g.dirs[:same]
	for _, name := range parts[same-1:] {
		up := g.dirs[len(g.dirs)-1].root
		fi, err := up.Lstat(name)
		if err != nil {
			return nil, err
		}
		if !fi.IsDir() {
			return nil, fmt.Errorf("%.200q is not a folder here: nothing is written through it", name)
		}
		r, err := up.OpenRoot(name)
		if err != nil {
			return nil, err
		}
		now, err := r.Stat(".")
		if err != nil || !os.SameFile(fi, now) {
			r.Close()
			return nil, fmt.Errorf("%.200q was exchanged while it was opened: nothing is written through it", name)
		}
		g.dirs = append(g.dirs, openDir{name: name, root: r})
	}
	return g.dirs[len(g.dirs)-1].root, nil
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "..."
	}
	return s
}
