package review

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

// prepare looks, makes what is new and keeps what is there; nothing that has a
// name of its own is changed.
func (w *putter) prepare(p *prepared) (err error) {
	dir := parent(p.path)
	p.name = base(p.path)
	if err := share.GoodPath(p.path); err != nil {
		return p.refuse(err)
	}
	p.f, err = w.root.Folder(dir)
	switch {
	case share.IsAstray(err) && p.want.kind == 0:
		p.verdict.same = true // what was to go has gone with its folder
		return nil
	case share.IsAstray(err):
		p.verdict.refused = fmt.Sprintf("its folder %q is none on the host, or is reached through a link", dir)
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if p.want.kind == 0 {
			p.verdict.same = true
			return nil
		}
		p.verdict.refused = fmt.Sprintf("its folder %q is not there on the host", dir)
		return nil
	case err != nil:
		return p.refuse(err)
	}
	if p.is, err = look(p.f, p.name); err != nil {
		return p.refuse(err)
	}
	if p.verdict, err = p.judge(p.f, p.name, p.is); err != nil {
		return p.refuse(err)
	}
	if !p.going() {
		return nil
	}
	p.tmp = tmpEntry(w.set.id, p.i)
	switch {
	case p.want.kind == 0 && p.is == nil:
		p.verdict.same = true
		return nil
	case p.want.kind == 0 && p.is.Mode.IsDir():
		p.op = opRmdir
	case p.want.kind == 0:
		p.op = opRemove
	case p.is != nil && (p.verdict.mode || p.want.kind == Folder && p.is.Mode.IsDir()):
		if p.is.Mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid) == p.want.perm {
			p.verdict.same = true
			return nil
		}
		p.op = opChmod
	default:
		if err := p.make(); err != nil {
			return p.refuse(err)
		}
	}
	crash("made")
	if err := w.keep(p); err != nil {
		if errors.Is(err, errMoved) {
			p.verdict.refused = changing
			return nil
		}
		return p.refuse(err)
	}
	if now, err := look(p.f, p.name); err != nil || !same(now, p.is) {
		p.verdict.refused = changing
		return p.refuse(err)
	}
	crash("kept")
	return nil
}

// make makes the new entry under its temporary name.
func (p *prepared) make() error {
	if p.mine = (*share.Info)(nil); p.want.kind == File {
		h, err := p.f.Create(p.tmp, 0o600)
		if err != nil {
			return err
		}
		info, err := h.Lstat()
		forget(&info)
		p.mine = &info
		crash("created")
		if err == nil {
			err = p.want.fill(h)
		}
		if err == nil && p.plan.Of == "" { // an undo gives back what is the host's own
			if err = h.MarkForeign(time.Now()); err != nil {
				err = fmt.Errorf("mark it as what came from a guest: %w", err)
			}
		}
		if err == nil {
			err = h.Chmod(p.want.perm)
		}
		if err == nil && !p.want.mtime.IsZero() {
			err = h.SetModified(p.want.mtime)
		}
		if err != nil {
			return errors.Join(err, h.Close())
		}
		p.open = append(p.open, h)
		return nil
	}
	var err error
	if p.want.kind == Link {
		err = p.f.Symlink(p.want.target, p.tmp)
	} else if err = p.f.Mkdir(p.tmp, 0o700); err == nil {
		err = p.f.Chmod(p.tmp, p.want.perm)
	}
	if err != nil {
		return err
	}
	info, err := infoAt(p.f, p.tmp)
	p.mine = &info
	return err
}

var errMoved = errors.New("it is another one now")

// keep takes the pre-image.
func (w *putter) keep(p *prepared) error {
	open := func() (share.Reader, error) {
		if p.is.Mode.Type() == fs.ModeSymlink {
			target, err := p.f.Readlink(p.name)
			return targetReader(target), err
		}
		h, info, err := p.f.Open(p.name)
		if err != nil {
			return nil, err
		}
		forget(&info)
		if !info.Same(*p.is) {
			h.Close()
			return nil, errMoved
		}
		if p.op == opSwap && p.want.kind == File { // the new one has what the user noted on the old
			fresh := p.open[0]
			if err := errors.Join(fresh.CopyAttributes(h), fresh.Chmod(p.want.perm)); err != nil {
				h.Close()
				return nil, err
			}
		}
		return h, nil
	}
	var err error
	if p.op == opChmod { // the content stays where it is
		kind := File
		if p.is.Mode.IsDir() {
			kind = Folder
		}
		p.pre = pre{I: p.i, Path: text(p.path), Kind: kind, Info: p.is, At: time.Now()}
	} else {
		var kept *share.Handle
		if p.pre, kept, p.size, err = w.undo.image(w.set, p.i, p.path, p.is, open); err != nil {
			return err
		}
		if kept != nil {
			p.open = append(p.open, kept)
		}
	}
	if p.mine != nil {
		p.pre.Dev, p.pre.Ino, p.pre.Fresh = p.mine.Dev, p.mine.Ino, true
	}
	return nil
}

// stringReader is the target of a link as a share.Reader.
type stringReader struct{ *strings.Reader }

func (stringReader) Close() error { return nil }

func targetReader(s string) share.Reader { return stringReader{strings.NewReader(s)} }

// same says whether the entry is untouched; either may be nil.
func same(a, b *share.Info) bool {
	if a == nil || b == nil {
		return a == b
	}
	return moved(a, b) && (a.Mode.IsDir() || a.Ctime.Equal(b.Ctime))
}

// moved is same for an entry that was given another name, which changes its
// ctime on many file systems.
func moved(a, b *share.Info) bool {
	if a.Dev != b.Dev || a.Ino != b.Ino || a.Mode.Type() != b.Mode.Type() {
		return false
	}
	return a.Mode.IsDir() || a.Size == b.Size && a.Mode == b.Mode && a.Mtime.Equal(b.Mtime)
}
