package review

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

func blobName(i int) string { return strconv.Itoa(i) }

// reserve takes room, before anything is written.
func (u *Undo) reserve(n int64) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n < 0 || n > u.max() || u.used > u.max()-n {
		return fmt.Errorf("%w: %d MiB are kept", ErrUndoFull, u.used>>20)
	}
	u.used += n
	return nil
}

func (u *Undo) refund(n int64) {
	u.mu.Lock()
	u.used -= min(u.used, n)
	u.mu.Unlock()
}

// image writes what stands at path into a set, and gives the line for it; of a
// file also the kept content, which is not on the disk yet.
func (u *Undo) image(s *set, i int, path string, is *share.Info, open func() (share.Reader, error)) (p pre, kept *share.Handle, size int64, err error) {
	p = pre{I: i, Path: text(path), Info: is, At: time.Now()}
	size = recordCost
	if is != nil && is.Mode.IsRegular() {
		size += is.Size
	}
	if err := u.reserve(size); err != nil {
		return pre{}, nil, 0, err
	}
	defer func() {
		if err != nil {
			u.refund(size)
		}
	}()
	switch {
	case is == nil:
		return p, nil, size, nil
	case is.Mode.IsDir():
		p.Kind = Folder
		return p, nil, size, nil
	case is.Mode.Type() == fs.ModeSymlink:
		p.Kind = Link
		target, err := readAll(open, maxTarget)
		p.Target = text(target)
		return p, nil, size, err
	case !is.Mode.IsRegular():
		p.Kind = Other
		return p, nil, size, nil
	}
	p.Kind, p.Kept = File, true
	kept, err = s.content(blobName(i), is.Size, open)
	return p, kept, size, err
}

func readAll(open func() (share.Reader, error), most int) ([]byte, error) {
	if open == nil {
		return nil, errors.New("the link's target is not told")
	}
	r, err := open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b := make([]byte, most+1)
	n, err := r.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if n > most {
		return nil, fmt.Errorf("the link's target has more than %d bytes", most)
	}
	return b[:n], nil
}

// content copies a file into the set, or has its blocks shared. The caller brings
// it to the disk.
func (s *set) content(name string, size int64, open func() (share.Reader, error)) (*share.Handle, error) {
	if open == nil {
		return nil, errors.New("its content cannot be read")
	}
	r, err := open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	h, err := s.folder.Create(name, 0o600)
	if err != nil {
		return nil, err
	}
	if err = clone(h, r); err != nil {
		err = copyAll(h, r, size)
	}
	if from, is := r.(*share.Handle); is && err == nil {
		h.CopyAttributes(from) // as far as this file system takes them: of a file that is only changed the folder still has them
	}
	if err != nil {
		h.Close()
		s.folder.Unlink(name)
		return nil, err
	}
	return h, nil
}

// copyAll copies size bytes, or what there are. A file that has grown since it
// was looked at is being changed by the host's own user.
func copyAll(to *share.Handle, from io.ReaderAt, size int64) error {
	_, err := io.Copy(io.NewOffsetWriter(to, 0), io.NewSectionReader(from, 0, size))
	return err
}
