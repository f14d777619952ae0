package review

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

const (
	changing = "the host was changing it at this moment (try again)"
	appeared = "something has appeared under its name on the host at this moment (try again)"
)

// commit carries out what is prepared. refused says that somebody else was
// quicker, and that what they made is there as it was.
func (w *putter) commit(p *prepared) (refused string, err error) {
	switch p.op {
	case opChmod:
		err = p.f.Chmod(p.name, p.want.perm)
	case opRmdir:
		if err = p.f.Rmdir(p.name); err != nil && !stops(err) {
			return "the folder is not empty on the host, or cannot be removed: " + clip(err.Error()), nil
		}
	case opRemove:
		refused, err = p.takeAway()
	default:
		refused, err = p.swap()
	}
	if err != nil && !stops(err) {
		return clip(err.Error()), nil
	}
	if err == nil && refused == "" {
		w.dirt(p)
	}
	crash("committed")
	return refused, err
}

// dirt notes that the folder is to be synced.
func (w *putter) dirt(p *prepared) {
	info, err := p.f.Lstat("")
	key := [2]uint64{info.Dev, info.Ino}
	if err != nil || info.Ino == 0 { // no numbers here: each for itself
		key = [2]uint64{^uint64(0), uint64(p.i)}
	}
	if w.dirty == nil {
		w.dirty = map[[2]uint64]*share.Folder{}
	}
	if w.dirty[key] == nil {
		w.dirty[key], p.dirty = p.f, true
	}
}

func (p *prepared) takeAway() (refused string, err error) {
	if err := p.f.Rename(p.name, p.tmp); err != nil {
		return "", err
	}
	crash("taken")
	out, err := infoAt(p.f, p.tmp)
	if err == nil && moved(&out, p.is) {
		return "", p.f.Unlink(p.tmp)
	}
	return changing, errors.Join(err, p.back(false))
}

// back gives somebody else's entry, which came out under the temporary name, the
// name that it had. Who removes what we put there meanwhile has it back too.
func (p *prepared) back(exchange bool) error {
	err := fs.ErrNotExist
	if exchange {
		if err = swapNames(p.f, p.tmp, p.name); err == nil {
			return nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = p.f.Rename(p.tmp, p.name)
	}
	if err != nil {
		return fmt.Errorf("something was put there at this moment, twice; what came first is %q now: %w", p.tmp, err)
	}
	return nil
}

func (p *prepared) swap() (refused string, err error) {
	if p.is == nil {
		err := p.f.Rename(p.tmp, p.name)
		if errors.Is(err, fs.ErrExist) {
			return appeared, nil
		}
		return "", err
	}
	err = swapNames(p.f, p.tmp, p.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "the host has removed it at this moment (try again)", nil
	case errors.Is(err, errors.ErrUnsupported):
		return p.replace()
	case err != nil:
		return "", err
	}
	crash("exchanged")
	out, err := infoAt(p.f, p.tmp)
	if err == nil && moved(&out, p.is) {
		if err = drop(p.f, p.tmp, &out); err == nil {
			return "", nil
		}
	}
	// Something else came out, or a folder with something in it.
	if err := errors.Join(err, p.back(true)); err != nil {
		return changing, err
	}
	return p.strayed(), nil
}

// strayed removes a new folder of ours that stood there for a moment, and says why
// it does not stand there any more. What somebody has put into it meanwhile, or in
// its place, is theirs: it stays, and is said.
func (p *prepared) strayed() string {
	switch t, err := infoAt(p.f, p.tmp); {
	case err != nil || p.mine == nil:
		return changing
	case t.Dev != p.mine.Dev || t.Ino != p.mine.Ino:
		return fmt.Sprintf("%s; what was put there meanwhile is %q now", changing, p.tmp)
	case !t.Mode.IsDir():
		return changing
	}
	if err := p.f.Rmdir(p.tmp); err == nil || errors.Is(err, fs.ErrNotExist) {
		return changing
	}
	return fmt.Sprintf("%s; what was put into the new folder meanwhile is in %q now", changing, p.tmp)
}

// replace is swap for hosts that cannot exchange: what is changed there between
// the last look and the call is lost but for its pre-image.
func (p *prepared) replace() (refused string, err error) {
	now, err := look(p.f, p.name)
	switch {
	case err != nil:
		return "", err
	case !same(now, p.is):
		return changing, nil
	case now.Mode.IsDir() || p.mine != nil && p.mine.Mode.IsDir():
		return p.makeWay()
	}
	return "", p.f.Replace(p.tmp, p.name)
}

// after looks at what stands there now: ours, or what somebody has made of it
// since, which must not count for ours.
func (p *prepared) after() *share.Info {
	now, err := look(p.f, p.name)
	switch {
	case p.mine != nil && (err != nil || now == nil || now.Ino != p.mine.Ino || now.Dev != p.mine.Dev):
		return p.mine
	case p.want.kind == 0, err != nil:
		return nil
	}
	return now
}

// flush makes what is ready last, and tells.
func (w *putter) flush() error {
	var all sync.WaitGroup
	errs := make(chan error, len(w.dirty))
	for _, f := range w.dirty {
		all.Go(func() { errs <- errors.Join(f.Sync(), f.Close()) })
	}
	all.Wait()
	clear(w.dirty)
	close(errs)
	for err := range errs {
		if err != nil {
			return err
		}
	}
	ready := w.ready
	w.ready = nil
	var records []record
	for _, o := range ready {
		if o.changed {
			records = append(records, record{Done: &done{I: o.step.i, After: o.after}})
		}
	}
	if len(records) > 0 {
		crash("synced")
		if err := errors.Join(w.set.log.append(records...), w.set.log.sync()); err != nil {
			return err
		}
		crash("done")
	}
	if len(ready) == 0 {
		return nil
	}
	if err := w.tell(ready); err != nil {
		return err
	}
	crash("told")
	return nil
}

// end closes the set.
func (w *putter) end() error {
	now := time.Now()
	err := w.set.log.append(record{End: &now})
	return errors.Join(err, w.set.log.sync(), w.set.close())
}
