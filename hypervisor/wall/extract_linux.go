package wall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/erofs/go-erofs"
	"github.com/gofrs/flock"
)

// Bounds of a root that is unpacked, as package images/oci has them.
const (
	maxExtractEntries = 1_000_000
	maxExtractBytes   = int64(32) << 30
	maxExtractDepth   = 256
)

// treeName is the folder, beside an image's root, with what is in it: whoever
// removes the image removes both.
const treeName = "tree"

// Extracted returns a folder with the files of a root that came from elsewhere,
// unpacked once. The host's kernel never sees such a file system: it is read here,
// in Go, and what it says becomes files of this user's, beneath one folder that
// nothing can lead out of.
//
//   - Devices, pipes and sockets are left out.
//   - No file is set-user-ID or set-group-ID, and none has extended attributes.
//   - As root, owners are as in the image, in a folder that only root may enter:
//     a guest's users are mapped to them. Else everything is this user's.
//
// The caller holds the image, so that nobody removes it meanwhile.
func Extracted(ctx context.Context, image string) (string, error) {
	tree := filepath.Join(filepath.Dir(image), treeName)
	if _, err := os.Lstat(tree); err == nil {
		return tree, nil
	}
	lock := flock.New(tree+".lock", flock.SetPermissions(0o600))
	if _, err := lock.TryLockContext(ctx, lockPoll); err != nil {
		return "", err
	}
	defer lock.Close()
	if _, err := os.Lstat(tree); err == nil {
		return tree, nil // another guest's start did it meanwhile
	}
	half := tree + ".new"
	if err := removeTree(half); err != nil {
		return "", err
	}
	if err := extract(ctx, image, half); err != nil {
		return "", errors.Join(fmt.Errorf("read %s: %w", image, err), removeTree(half))
	}
	return tree, os.Rename(half, tree)
}

// extract unpacks an image into a folder that it makes.
func extract(ctx context.Context, image, to string) (err error) {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	defer func() { // what it reads may be anything
		if p := recover(); p != nil {
			err = fmt.Errorf("not a sound EROFS image: %v", p)
		}
	}()
	img, err := erofs.Open(f)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer root.Close()
	x := &extraction{ctx: ctx, img: img, root: root, links: map[uint64]string{}, own: AsRoot(), buf: make([]byte, 1<<20)}
	if err := x.folder(".", 0); err != nil {
		return err
	}
	return x.mountPoints()
}

type extraction struct {
	ctx     context.Context
	img     fs.FS
	root    *os.Root
	links   map[uint64]string // the first name of each file that has several
	own     bool
	buf     []byte
	entries int
	bytes   int64
}

// folder unpacks what is in the folder dir, which exists, and then gives it its own
// mode: before, nothing might be made in it.
func (x *extraction) folder(dir string, depth int) error {
	if depth > maxExtractDepth {
		return fmt.Errorf("folders %d deep", depth)
	}
	list, err := fs.ReadDir(x.img, dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		if x.entries++; x.entries > maxExtractEntries {
			return fmt.Errorf("more than %d files", maxExtractEntries)
		}
		if n := e.Name(); n == "" || n == "." || n == ".." || filepath.Base(n) != n || len(n) > 255 {
			return fmt.Errorf("a file named %.80q", n)
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if err := x.entry(path.Join(dir, e.Name()), info, depth); err != nil {
			return err
		}
	}
	info, err := fs.Stat(x.img, dir)
	if err != nil {
		return err
	}
	return x.finish(dir, info)
}

// owned is what the image says beside fs.FileInfo.
type owned interface {
	UID() uint32
	GID() uint32
	Ino() uint64
	Nlink() uint64
}

func (x *extraction) entry(name string, info fs.FileInfo, depth int) error {
	o, ok := info.(owned)
	if !ok {
		return errors.New("the image's owners cannot be read")
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		if err := x.root.Mkdir(name, 0o700); err != nil {
			return err
		}
		return x.folder(name, depth+1)
	case fs.ModeSymlink:
		target, err := fs.ReadLink(x.img, name)
		if err != nil {
			return err
		}
		if err := x.root.Symlink(target, name); err != nil {
			return err
		}
		return x.chown(name, o)
	case 0:
		if first, ok := x.links[o.Ino()]; ok && o.Nlink() > 1 {
			return x.root.Link(first, name)
		}
		if err := x.file(name, info.Size()); err != nil {
			return err
		}
		if o.Nlink() > 1 {
			x.links[o.Ino()] = name
		}
		return x.finish(name, info)
	}
	return nil
}

func (x *extraction) file(name string, size int64) error {
	if x.bytes += size; size < 0 || x.bytes > maxExtractBytes {
		return fmt.Errorf("more than %d bytes", maxExtractBytes)
	}
	in, err := x.img.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := x.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{io.LimitReader(in, size)}, x.buf)
	if err == nil && n != size {
		err = fmt.Errorf("%.80q has %d bytes of %d", name, n, size)
	}
	return errors.Join(err, out.Close())
}

// finish gives a file or folder its owner, its mode and its time. None has the bits
// that give its owner's rights to whoever runs it.
func (x *extraction) finish(name string, info fs.FileInfo) error {
	if o, ok := info.(owned); ok {
		if err := x.chown(name, o); err != nil {
			return err
		}
	}
	mode := info.Mode()
	if st, ok := info.Sys().(*erofs.Stat); ok {
		mode = st.Mode // with the sticky bit, which the other has not
	}
	f, err := x.root.Open(name)
	if err != nil {
		return err
	}
	// os.Root's own Chmod knows permissions only.
	if err := errors.Join(f.Chmod(mode&(fs.ModePerm|fs.ModeSticky)), f.Close()); err != nil {
		return err
	}
	// Python, for one, believes its compiled files by their sources' times.
	t := info.ModTime()
	if t.Before(time.Unix(0, 0)) || t.Year() > 9999 {
		t = time.Unix(0, 0)
	}
	return x.root.Chtimes(name, t, t)
}

func (x *extraction) chown(name string, o owned) error {
	if !x.own {
		return nil
	}
	return x.root.Lchown(name, int(o.UID()), int(o.GID()))
}

// mountPoints makes folders of what a driver mounts on, whatever the image has there.
func (x *extraction) mountPoints() error {
	for _, d := range []string{"dev", "proc", "run", "sys", "tmp"} {
		if fi, err := x.root.Lstat(d); err == nil && fi.IsDir() {
			continue
		}
		if err := x.root.RemoveAll(d); err != nil {
			return err
		}
		if err := x.root.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}
