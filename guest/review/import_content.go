package review

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/carrel-vm/carrel/guest/wire"
)

// contents asks for what is needed, the work before what is in .git. alive says
// that the guest still answers.
func (im *importer) contents(ctx context.Context) (alive bool, err error) {
	need := im.need()
	if !im.mute {
		traffic := 2*im.MaxBytes + im.MaxFile // a guest may not send for ever what is not taken
		for try := 0; try < 2 && err == nil && len(need) > 0; try++ {
			need, err = im.fetch(need, &traffic)
		}
	}
	note := "it was written to while it was read (end what writes to it, and look again)"
	var own *ownError
	switch {
	case errors.As(err, &own):
		return false, own.error
	case errors.Is(err, ErrGuest):
		return false, err
	case err != nil:
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		im.cut("the guest stopped sending: " + err.Error())
		fallthrough
	case im.mute:
		note = "the guest did not send it"
	default:
		alive = true
	}
	for _, e := range need {
		e.Note = note
	}
	im.kept = slices.DeleteFunc(im.kept, func(e kept) bool { return im.equal(&e) })
	return alive, nil
}

// need finds the files of which the content has to be asked for, and settles
// the others.
func (im *importer) need() (need []*kept) {
	room := im.MaxBytes
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
			default:
				room -= e.Size
				if !im.reuse(e) {
					need = append(need, e)
				}
			}
		}
	}
	return need
}

// ownError is a failure of this host's.
type ownError struct{ error }

// reuse takes the content that the last import brought.
func (im *importer) reuse(e *kept) bool {
	old := im.old[e.Name]
	if old == nil || old.Kind != File || old.Stamp != e.Stamp || old.Size != e.Size || old.Blob == "" {
		return false
	}
	err := im.s.atBlob(old.Blob, func(in *os.Root, at string) error {
		is, err := in.Lstat(at)
		if err == nil && is.Mode().IsRegular() && is.Size() == e.Size {
			e.Blob = old.Blob
		}
		return err
	})
	return err == nil && e.Blob != ""
}

// equal says that the host has the same file already.
func (im *importer) equal(e *kept) bool {
	if e.Blob == "" || e.host == nil || !e.host.Mode.IsRegular() || e.host.Size != e.Size || !sameMode(e.Mode, e.host) {
		return false
	}
	sum, err := hashFile(im.Root, e.Name, e.Size)
	return err == nil && sum == e.Blob
}

// Wants go out in batches, and two may be unanswered: while the guest sends the
// one, it has the next already, and nothing waits for the way there and back.
// Answers come in the order of the wants.
const (
	wantBatch   = 32
	wantBatches = 2
)

// fetch asks for contents. It returns those that have another size than the list
// said, or, with an error, all that did not come.
func (im *importer) fetch(need []*kept, traffic *int64) (rest []*kept, err error) {
	turns := make(chan struct{}, wantBatches)
	stop, asked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(asked)
		if im.ask(need, turns, stop) != nil {
			im.hangUp() // so that nobody waits for an answer
		}
	}()
	defer func() {
		if close(stop); err != nil {
			im.hangUp() // it may be writing to a guest that does not read
		}
		<-asked
	}()
	for i, e := range need {
		sum, note, err := im.take(e, traffic)
		if err != nil {
			return append(rest, need[i:]...), err
		}
		if e.Blob, e.Note = sum, note; sum == "" && note == "" {
			rest = append(rest, e)
		}
		if (i+1)%wantBatch == 0 {
			select {
			case <-turns:
			case <-asked: // a guest may answer what nobody could ask
			}
		}
	}
	return rest, nil
}

// hangUp ends a stream that is of no use any more.
func (im *importer) hangUp() {
	if c, ok := im.out.(io.Closer); ok {
		c.Close()
	}
}

// ask sends the wants, each batch when it has a turn.
func (im *importer) ask(need []*kept, turns chan<- struct{}, stop <-chan struct{}) error {
	for some := range slices.Chunk(need, wantBatch) {
		select {
		case turns <- struct{}{}:
		case <-stop:
			return nil
		}
		var b bytes.Buffer
		for _, e := range some {
			if err := wire.Write(&b, &wire.Reviewing{Kind: &wire.Reviewing_Want{Want: &wire.Want{Index: e.index}}}); err != nil {
				return err
			}
		}
		if _, err := im.out.Write(b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// take reads one content. Neither a sum nor a note: it has another size than the
// list said.
func (im *importer) take(e *kept, traffic *int64) (sum, note string, err error) {
	im.fetched++
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
