package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/carrel-vm/carrel/guest/api"
)

// Put copies a local file or folder into a guest. A to that ends in "/" is the
// folder to copy into; else its last part is the copy's new name. Links are
// copied as links, never followed, except local itself.
func (c *Client) Put(ctx context.Context, guest, local, to string, o CopyOptions) error {
	o.fill()
	if err := CheckName("guest", guest); err != nil {
		return err
	}
	if err := checkGuestPath(to); err != nil {
		return err
	}
	local, err := filepath.Abs(local)
	if err != nil {
		return err
	}
	if local, err = filepath.EvalSymlinks(local); err != nil {
		return fmt.Errorf("copy into guest %s: %w", guest, err)
	}
	dir, name := path.Dir(path.Clean(to)), path.Base(path.Clean(to))
	if strings.HasSuffix(to, "/") || strings.HasSuffix(to, "/.") {
		dir, name = path.Clean(to), filepath.Base(local)
	}
	if err := cleanName(name); err != nil {
		return &Error{Code: "bad_path", Message: fmt.Sprintf("%.200q cannot be the name of the copy", name), Cause: err.Error()}
	}

	// Everything is opened beneath this root, and a folder is its own root: a
	// guest that shares it could exchange a file for a link between our look
	// and our open.
	top, base := local, "."
	if fi, err := os.Stat(local); err != nil {
		return fmt.Errorf("copy into guest %s: %w", guest, err)
	} else if !fi.IsDir() {
		top, base = filepath.Split(local)
	}
	root, err := os.OpenRoot(top)
	if err != nil {
		return fmt.Errorf("copy into guest %s: %w", guest, err)
	}
	defer root.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st := c.files.Put(ctx)
	p := &putter{root: root, st: st, o: o}
	err = st.Send(&api.PutRequest{Kind: &api.PutRequest_Open{Open: &api.PutOpen{Guest: guest, Path: dir, User: o.User, Mkdir: true}}})
	if err == nil {
		err = p.walk(ctx, base, name)
	}
	// io.EOF: the other side has ended; the answer says why.
	if err != nil && !errors.Is(err, io.EOF) {
		// Ending ctx resets the stream; a clean end would pass for the whole.
		return wrap("copy "+local+" into guest "+guest, err)
	}
	_, err = st.CloseAndReceive()
	return wrap("copy "+local+" into guest "+guest, err)
}

// putter sends one tree.
type putter struct {
	root    *os.Root
	st      *connect.ClientStreamForClient[api.PutRequest, api.PutResponse]
	o       CopyOptions
	entries int
	bytes   int64
}

// walk sends base, and what is in it, under name.
func (p *putter) walk(ctx context.Context, base, name string) error {
	return fs.WalkDir(p.root.FS(), base, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if p.entries++; p.entries > maxEntries {
			return fmt.Errorf("there are more than %d entries", maxEntries)
		}
		f := &api.File{Name: name}
		if at != base {
			f.Name += "/" + at
		}
		if err := cleanName(f.Name); err != nil {
			return fmt.Errorf("%.200q: %w", at, err)
		}
		switch d.Type() {
		case 0:
			return p.file(at, f)
		case fs.ModeDir:
			fi, err := d.Info()
			if err != nil {
				return err
			}
			f.Type, f.Mode = api.FileType_FILE_TYPE_DIRECTORY, uint32(fi.Mode().Perm())
		case fs.ModeSymlink:
			if f.Target, err = p.root.Readlink(at); err != nil {
				return err
			}
			if !utf8.ValidString(f.Target) {
				return fmt.Errorf("the link %.200q leads to %.200q, which is not UTF-8, and the API has no form for it", at, f.Target)
			}
			f.Type, f.Mode = api.FileType_FILE_TYPE_SYMLINK, 0o777
		default:
			p.o.Warn(fmt.Sprintf("left out %q: it is neither file, folder nor link", at))
			return nil
		}
		return p.send(f)
	})
}

func (p *putter) send(f *api.File) error {
	return p.st.Send(&api.PutRequest{Kind: &api.PutRequest_File{File: f}})
}

// file sends a regular file: as many bytes as it had when it was opened.
func (p *putter) file(at string, f *api.File) error {
	h, err := p.root.OpenFile(at, os.O_RDONLY|nonBlock, 0)
	if err != nil {
		return err
	}
	defer h.Close()
	fi, err := h.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		p.o.Warn(fmt.Sprintf("left out %q: it is no longer a file", at))
		return nil
	}
	f.Type, f.Mode, f.Size = api.FileType_FILE_TYPE_REGULAR, uint32(fi.Mode().Perm()), fi.Size()
	if p.bytes+f.Size > p.o.MaxBytes {
		return tooLarge(p.o.MaxBytes)
	}
	if err := p.send(f); err != nil {
		return err
	}
	buf := make([]byte, min(copyChunk, f.Size))
	for left := f.Size; left > 0; {
		n, err := io.ReadFull(h, buf[:min(int64(len(buf)), left)])
		if err != nil {
			return fmt.Errorf("%s became shorter while it was copied: %w", at, io.ErrUnexpectedEOF)
		}
		if err := p.st.Send(&api.PutRequest{Kind: &api.PutRequest_Data{Data: buf[:n]}}); err != nil {
			return err
		}
		left -= int64(n)
		p.bytes += int64(n)
		p.o.OnBytes(p.bytes)
	}
	return nil
}

func tooLarge(limit int64) error {
	return &Error{Code: "too_large", Message: fmt.Sprintf("the copy is larger than %d bytes", limit), Cure: "copy less at once, or raise the limit (--max-bytes)"}
}
