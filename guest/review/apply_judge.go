package review

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/carrel-vm/carrel/guest/share"
)

// stepOf makes the step of an entry.
func (a *applier) stepOf(e *Entry) *step {
	s := &step{path: e.Name, told: true, plan: plan{Entry: true, Stamp: text(e.Stamp), Was: wasOf(e)}}
	s.judge = func(f *share.Folder, name string, is *share.Info) (verdict, error) { return a.judge(e, f, name, is) }
	perm := os.FileMode(e.Mode) & fs.ModePerm
	switch e.Kind {
	case File:
		s.want = state{kind: File, perm: perm, fill: func(h *share.Handle) error { return a.fill(h, e) }}
	case Link:
		s.want = state{kind: Link, target: e.Target}
	case Folder, NewFolder:
		s.want = state{kind: Folder, perm: perm}
	}
	return s
}

// fill writes the content of an entry, which must be what its name says.
func (a *applier) fill(h *share.Handle, e *Entry) error {
	blob, err := a.Store.Blob(e.Blob)
	if err != nil {
		return err
	}
	defer blob.Close()
	sum := sha256.New()
	buf := make([]byte, min(e.Size+1, 256<<10))
	n, err := io.CopyBuffer(onlyWriter{io.MultiWriter(io.NewOffsetWriter(h, 0), sum)}, io.LimitReader(blob, e.Size+1), buf)
	switch {
	case err != nil:
		return err
	case n != e.Size || hex.EncodeToString(sum.Sum(nil)) != e.Blob:
		return fmt.Errorf("%w: the content of %.300q is another than it was", ErrDamaged, e.Name)
	}
	return nil
}

// onlyWriter hides that a file could read by itself.
type onlyWriter struct{ io.Writer }

// judge compares three: what the host had when the guest first saw it, what
// the host has now, and what the guest has.
func (a *applier) judge(e *Entry, f *share.Folder, name string, is *share.Info) (verdict, error) {
	if e.Kind == Removed && is == nil {
		return verdict{same: true}, nil
	}
	equal, mode, err := a.equal(e, f, name, is)
	if err != nil {
		return verdict{}, err
	}
	switch {
	case is != nil && !ordinary(is):
		return verdict{refused: "the host has a device, a pipe or a socket there"}, nil
	case equal:
		return verdict{same: true}, nil
	case (e.Kind == Folder || e.Kind == NewFolder) && is != nil && is.Mode.IsDir():
		// The folder is there; its mode is changed only if it is the one that
		// the guest knew.
		return verdict{mode: true, same: !Unchanged(e.Base, is) && !a.opts.Overwrite}, nil
	case Unchanged(e.Base, is), a.opts.Overwrite, mode && e.Base == nil:
		return verdict{mode: mode}, nil
	}
	return verdict{refused: conflict(e.Base, is)}, nil
}

// conflict says what the host has done meanwhile.
func conflict(base, is *share.Info) string {
	const cure = " (look at both; carrel apply --overwrite takes the guest's, and can be undone)"
	switch {
	case is == nil:
		return "the host has removed it since the guest first saw it" + cure
	case base == nil:
		return "the host has something under this name that the guest has not seen" + cure
	case base.Mode.Type() != is.Mode.Type():
		return "on the host it has become something else since the guest first saw it" + cure
	}
	return "the host has changed it since the guest first saw it" + cure
}

// equal says whether the host has what the guest has. mode: but for the mode.
func (a *applier) equal(e *Entry, f *share.Folder, name string, is *share.Info) (equal, mode bool, err error) {
	if is == nil || f == nil {
		return false, false, nil
	}
	switch {
	case e.Kind == Link && is.Mode.Type() == fs.ModeSymlink:
		target, err := f.Readlink(name)
		return err == nil && target == e.Target, false, err
	case e.Kind == Folder && is.Mode.IsDir():
		return sameMode(e.Mode, is), false, nil
	case e.Kind == File && is.Mode.IsRegular() && is.Size == e.Size && e.Blob != "":
		h, info, err := f.Open(name)
		if err != nil || !info.Same(*is) {
			return false, false, err
		}
		defer h.Close()
		sum := sha256.New()
		if _, err := io.Copy(sum, io.NewSectionReader(h, 0, e.Size)); err != nil {
			return false, false, err
		}
		if hex.EncodeToString(sum.Sum(nil)) != e.Blob {
			return false, false, nil
		}
		equal = is.Mode.Perm() == is.Mode && sameMode(e.Mode, is)
		return equal, !equal, nil
	}
	return false, false, nil
}
