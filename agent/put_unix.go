//go:build unix

package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

// maxSealed bounds how many folders without write permission a copy may hold.
const maxSealed = 10000

// putter receives one copy.
type putter struct {
	root int
	// file is being written; left is how many bytes it still lacks.
	file *os.File
	left int64
	// sealed are folders that get their mode when all is in them.
	sealed map[string]uint32
}

// put receives a copy from the host until its Done.
func put(conn io.Reader, req *wire.Put) (err error) {
	if err := absolute(req.Path); err != nil {
		return err
	}
	if req.Mkdir {
		if err := os.MkdirAll(req.Path, 0o755); err != nil {
			return err
		}
	}
	root, err := unix.Open(req.Path, pathOnly|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s in the guest: %w", req.Path, err)
	}
	p := &putter{root: root, sealed: make(map[string]uint32)}
	defer func() {
		err = errors.Join(err, p.finish())
		_ = unix.Close(root)
	}()
	r := wire.NewReader(conn)
	for {
		var m wire.Copy
		if err := r.Read(&m); err != nil {
			return fmt.Errorf("the copy broke off: %w", err)
		}
		switch k := m.Kind.(type) {
		case *wire.Copy_File:
			err = p.begin(k.File)
		case *wire.Copy_Data:
			err = p.data(k.Data)
		case *wire.Copy_Done:
			switch {
			case k.Done.GetError() != "":
				return fmt.Errorf("the host gave up: %s", k.Done.GetError())
			case p.left != 0:
				return fmt.Errorf("the last file lacks %d bytes", p.left)
			}
			return nil
		default:
			err = errors.New("unknown frame in a copy")
		}
		if err != nil {
			return err
		}
	}
}

// begin makes what f says, in place of what had its name; a folder that is
// there already stays.
func (p *putter) begin(f *wire.File) error {
	if p.left != 0 {
		return fmt.Errorf("file %.200q begins before %d bytes of the last one have come", f.GetName(), p.left)
	}
	if err := checkName(f.GetName()); err != nil {
		return err
	}
	if f.GetMode()&^0o777 != 0 || f.GetSize() < 0 || f.GetSize() != 0 && f.GetType() != wire.FileType_FILE_TYPE_REGULAR {
		return fmt.Errorf("file %.200q has mode %#o and size %d, which cannot be", f.Name, f.Mode, f.Size)
	}
	dir, base := path.Split(f.Name)
	parent, err := openBeneath(p.root, path.Clean("./"+dir), pathOnly|unix.O_DIRECTORY)
	if err != nil {
		return &os.PathError{Op: "open the folder of", Path: f.Name, Err: err}
	}
	defer unix.Close(parent)
	if err := p.make(parent, base, f); err != nil {
		return &os.PathError{Op: "create", Path: f.Name, Err: err}
	}
	return nil
}

func (p *putter) make(parent int, base string, f *wire.File) error {
	if f.Type == wire.FileType_FILE_TYPE_DIRECTORY {
		err := unix.Mkdirat(parent, base, f.Mode|0o700)
		if err == unix.EEXIST {
			// Only a real folder will do: opened, not looked at.
			fd, err := unix.Openat(parent, base, pathOnly|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}
		if err == nil && f.Mode&0o700 != 0o700 {
			if len(p.sealed) >= maxSealed {
				return fmt.Errorf("more than %d folders without full permissions of their owner", maxSealed)
			}
			p.sealed[f.Name] = f.Mode
		}
		return err
	}
	if err := unix.Unlinkat(parent, base, 0); err != nil && err != unix.ENOENT {
		return err
	}
	switch f.Type {
	case wire.FileType_FILE_TYPE_SYMLINK:
		return unix.Symlinkat(f.Target, parent, base)
	case wire.FileType_FILE_TYPE_REGULAR:
		fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		p.file, p.left = os.NewFile(uintptr(fd), f.Name), f.Size
		if err := p.file.Chmod(os.FileMode(f.Mode)); err != nil {
			return err
		}
		if f.Size == 0 {
			return p.close()
		}
		return nil
	}
	return errors.New("neither file, folder nor link")
}

func (p *putter) data(b []byte) error {
	if p.file == nil || int64(len(b)) > p.left {
		return errors.New("more bytes than the file was said to have")
	}
	if _, err := p.file.Write(b); err != nil {
		return err
	}
	p.left -= int64(len(b))
	if p.left == 0 {
		return p.close()
	}
	return nil
}

func (p *putter) close() error {
	f := p.file
	p.file = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

// finish closes what is open and gives sealed folders their modes.
func (p *putter) finish() error {
	err := p.close()
	for name, mode := range p.sealed {
		fd, e := openBeneath(p.root, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if e == nil {
			e = errors.Join(unix.Fchmod(fd, mode), unix.Close(fd))
		}
		err = errors.Join(err, e)
	}
	return err
}
