package review

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/carrel-vm/carrel/guest/wire"
)

// contents asks for what is needed, the work before what is in .git. alive says
// that the guest still answers.
func (im *importer) contents(ctx context.Context) (alive bool, err error) {
	alive = !im.mute
	room := im.MaxBytes
	traffic := 2*im.MaxBytes + im.MaxFile // a guest may not send for ever what is not taken
	for _, git := range []bool{false, true} {
		for i := range im.kept {
			e := &im.kept[i]
			if e.Kind != File || e.Hidden || inGit(e.Name) != git {
				continue
			}
			if e.Ignored && !im.Ignored { // what somebody asked for once is kept
				if e.Size <= room && im.reuse(e) {
					room -= e.Size
				}
				continue
			}
			switch {
			case e.Size > im.MaxFile:
				e.Note = fmt.Sprintf("it has %d bytes, and %d are taken of one file", e.Size, im.MaxFile)
			case e.Size > room:
				e.Note = fmt.Sprintf("%d bytes are taken in all", im.MaxBytes)
				im.cut(fmt.Sprintf("more than %d bytes of contents", im.MaxBytes))
			case im.reuse(e):
				room -= e.Size
			case !alive:
				e.Note = "the guest did not send it"
			default:
				err := im.fetch(e, &traffic)
				var own *ownError
				switch {
				case errors.As(err, &own):
					return false, own.error
				case errors.Is(err, ErrGuest):
					return false, err
				case err != nil:
					alive = false
					if ctx.Err() != nil {
						err = context.Cause(ctx)
					}
					e.Note = "the guest did not send it"
					im.cut("the guest stopped sending: " + err.Error())
				default:
					room -= e.Size
				}
			}
		}
	}
	im.kept = slices.DeleteFunc(im.kept, func(e kept) bool { return im.equal(&e) })
	return alive, nil
}

// ownError is a failure of this host's.
type ownError struct{ error }

// reuse takes the content that the last import brought.
func (im *importer) reuse(e *kept) bool {
	old := im.old[e.Name]
	if old == nil || old.Kind != File || old.Stamp != e.Stamp || old.Size != e.Size || old.Blob == "" {
		return false
	}
	if is, err := im.s.root.Lstat(blobPath(old.Blob)); err != nil || !is.Mode().IsRegular() || is.Size() != e.Size {
		return false
	}
	e.Blob = old.Blob
	return true
}

// equal says that the host has the same file already.
func (im *importer) equal(e *kept) bool {
	if e.Blob == "" || e.host == nil || !e.host.Mode.IsRegular() || e.host.Size != e.Size || perm(e.host) != e.Mode {
		return false
	}
	sum, err := hashFile(im.Root, e.Name, e.Size)
	return err == nil && sum == e.Blob
}

// fetch asks for one content, and once more if it was changed meanwhile.
func (im *importer) fetch(e *kept, traffic *int64) error {
	for range 2 {
		sum, note, err := im.ask(e, traffic)
		if err != nil {
			return err
		}
		if e.Blob, e.Note = sum, note; sum != "" || note != "" {
			return nil
		}
	}
	e.Note = "it was written to while it was read (end what writes to it, and look again)"
	return nil
}

// ask asks for one content. Neither a sum nor a note: it has another size than
// the list said.
func (im *importer) ask(e *kept, traffic *int64) (sum, note string, err error) {
	b, err := im.s.newBlob()
	if err != nil {
		return "", "", &ownError{err}
	}
	done := false
	defer func() {
		if !done {
			b.abandon()
		}
	}()
	if err := wire.Write(im.out, &wire.Reviewing{Kind: &wire.Reviewing_Want{Want: &wire.Want{Index: e.index}}}); err != nil {
		return "", "", err
	}
	var got int64
	for {
		m := new(wire.Reviewed)
		if err := im.in.Read(m); err != nil {
			return "", "", lost(err)
		}
		switch k := m.Kind.(type) {
		case *wire.Reviewed_Data:
			if len(k.Data) == 0 {
				return "", "", fmt.Errorf("%w: a piece of a content without a byte", ErrGuest)
			}
			got += int64(len(k.Data))
			if *traffic -= int64(len(k.Data)); *traffic < 0 {
				return "", "", fmt.Errorf("%w: contents without end", ErrGuest)
			}
			if got > e.Size {
				continue // the rest is only read to come to its end
			}
			if _, err := b.Write(k.Data); err != nil {
				return "", "", &ownError{err}
			}
		case *wire.Reviewed_Done:
			switch {
			case k.Done.Error != "":
				return "", wire.Text(k.Done.Error, wire.MaxText), nil
			case got != e.Size:
				return "", "", nil
			}
			done = true
			if sum, err = b.keep(); err != nil {
				return "", "", &ownError{err}
			}
			return sum, "", nil
		default:
			return "", "", fmt.Errorf("%w: a frame of no use in a content", ErrGuest)
		}
	}
}
