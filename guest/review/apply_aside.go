package review

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/carrel-vm/carrel/guest/share"
)

// Where two entries cannot be exchanged, and one of them is a folder, neither is
// renamed over the other: what stands there steps aside, under a second temporary
// name, and is removed when the new one has its place. If that fails it has its
// name again, and after a crash the next process goes on, or gives it back.

// These two are as the host has them; tests take from them what other hosts lack:
// the exchange, and the numbers of entries.
var (
	swapNames = (*share.Folder).Exchange
	forget    = func(*share.Info) {}
)

// infoAt is Lstat of a folder in which steps are carried out.
func infoAt(f *share.Folder, name string) (share.Info, error) {
	info, err := f.Lstat(name)
	forget(&info)
	return info, err
}

// aside is the name of what has made way.
func (p *prepared) aside() string { return p.tmp + "-old" }

func (p *prepared) makeWay() (refused string, err error) {
	if err := p.f.Rename(p.name, p.aside()); err != nil {
		return "", err
	}
	crash("aside")
	out, err := infoAt(p.f, p.aside())
	if err != nil || !moved(&out, p.is) {
		return changing, errors.Join(err, p.giveBack())
	}
	if err := p.f.Rename(p.tmp, p.name); err != nil {
		return "", errors.Join(err, p.giveBack())
	}
	crash("cleared")
	if drop(p.f, p.aside(), &out) == nil {
		return "", nil
	}
	// A folder with something in it, or a file that may not be removed.
	switch err := p.f.Rename(p.name, p.tmp); {
	case errors.Is(err, fs.ErrNotExist): // it was removed meanwhile
	case err != nil:
		return "", fmt.Errorf("what stood there is %q now: %w", p.aside(), err)
	default:
		if t, err := infoAt(p.f, p.tmp); err != nil || p.mine != nil && (t.Dev != p.mine.Dev || t.Ino != p.mine.Ino) {
			return "", errors.Join(fmt.Errorf("%s; what stood there is %q now", changing, p.aside()), err, p.f.Rename(p.tmp, p.name))
		}
	}
	if err := p.giveBack(); err != nil {
		return "", err
	}
	return p.strayed(), nil
}

// giveBack gives what has made way its name again.
func (p *prepared) giveBack() error {
	if err := p.f.Rename(p.aside(), p.name); err != nil {
		return fmt.Errorf("what stood there is %q now: %w", p.aside(), err)
	}
	return nil
}

// settleAside decides where something has made way.
func (p *prepared) settleAside(was *pre, now, left, aside *share.Info) (changed bool, err error) {
	ours := func(i *share.Info) bool {
		if was.Ino == 0 { // no numbers here: a folder for a file, or a file for a folder
			return i != nil && was.Info != nil && i.Mode.IsDir() != was.Info.Mode.IsDir()
		}
		return i != nil && i.Ino == was.Ino && i.Dev == was.Dev
	}
	if now == nil && was.is(aside) && ours(left) && p.f.Rename(p.tmp, p.name) == nil {
		now, left = left, nil
	}
	switch {
	case now == nil:
		err = p.giveBack()
	case left == nil && ours(now):
		if was.is(aside) && drop(p.f, p.aside(), aside) == nil {
			return true, nil
		}
		// A folder with something in it, or it was written to: back.
		if err := p.f.Rename(p.name, p.tmp); err != nil {
			return false, err
		}
		t, err := look(p.f, p.tmp)
		if err != nil || !ours(t) {
			return false, errors.Join(err, p.f.Rename(p.tmp, p.name))
		}
		if drop(p.f, p.tmp, t) != nil { // the same: each keeps what somebody has put into it
			return true, p.f.Rename(p.tmp, p.name)
		}
		return false, p.giveBack()
	case aside.Mode.IsDir():
		// Somebody has put something there meanwhile, and nothing is in the other.
		p.f.Rmdir(p.aside())
	}
	// What is left otherwise is all that there is of a file: no undo counts a step
	// that was not done.
	if err == nil && ours(left) {
		err = drop(p.f, p.tmp, left)
	}
	return false, err
}
