package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
)

// maxAsked is how many questions may be open at once.
const maxAsked = 128

// Client is a keeper's end, once the process is ready.
type Client struct {
	c    *Conn
	gone chan struct{} // closed when the process is

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan string
	cause   string
	busy    bool // has a carrier
	changed func()
}

// NewClient takes a keeper's end. changed is called when Cause may have something
// to say, or is nil.
func NewClient(c *Conn, changed func()) *Client {
	if changed == nil {
		changed = func() {}
	}
	k := &Client{c: c, gone: make(chan struct{}), waiting: map[uint64]chan string{}, changed: changed}
	go k.listen()
	return k
}

// listen reads answers until the process is gone.
func (k *Client) listen() {
	err := k.read()
	k.mu.Lock()
	if k.cause == "" {
		k.cause = "its server ended"
		if !errors.Is(err, io.EOF) {
			k.cause += ": " + Text(err)
		}
	}
	for id, ch := range k.waiting {
		close(ch)
		delete(k.waiting, id)
	}
	close(k.gone)
	k.mu.Unlock()
	k.c.Close()
	k.changed()
}

func (k *Client) read() error {
	for {
		m, f, err := k.c.Receive()
		if err != nil {
			return err
		}
		if f != nil {
			f.Close()
		}
		switch m.Kind {
		case Done:
			k.mu.Lock()
			ch := k.waiting[m.ID]
			delete(k.waiting, m.ID)
			k.mu.Unlock()
			if ch != nil {
				ch <- m.Error
			}
		case Ended:
			k.mu.Lock()
			k.cause, k.busy = m.Error, false
			k.mu.Unlock()
			k.changed()
		default:
			return bad("%s is not for a keeper", m.Kind)
		}
	}
}

// Gone is closed when the process is gone.
func (k *Client) Gone() <-chan struct{} { return k.gone }

// Cause says why the process serves nothing any more; empty: it serves.
func (k *Client) Cause() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.cause
}

// Carrying says that the process has a carrier.
func (k *Client) Carrying() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.busy
}

// Carry hands over a carrier, when there is none or the one before has ended;
// file stays the caller's.
func (k *Client) Carry(kind Kind, file syscall.Conn) error {
	k.mu.Lock()
	if k.busy {
		k.mu.Unlock()
		return errors.New("the share is carried already")
	}
	k.busy = true
	k.mu.Unlock()
	if err := k.c.Send(&Message{Kind: kind}, file); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy { // and not ended at once
		k.cause = ""
	}
	return nil
}

// Session begins a new set of pre-images.
func (k *Client) Session(ctx context.Context, task string) error {
	return k.ask(ctx, &Message{Kind: Session, Task: task}, nil)
}

// Review hands over a stream of the guest's and waits until what it says is
// kept, with the contents of what the host's ignore rules leave out if ignored
// says so. file stays the caller's.
func (k *Client) Review(ctx context.Context, task string, ignored bool, file syscall.Conn) error {
	return k.ask(ctx, &Message{Kind: Review, Task: task, Ignored: ignored}, file)
}

// Shut ends every carrier and has the process let go of the folder. When it
// returns without an error, nothing reaches the folder any more.
func (k *Client) Shut(ctx context.Context) error {
	err := k.ask(ctx, &Message{Kind: Close}, nil)
	select {
	case <-k.gone: // which is as good
		return nil
	default:
		return err
	}
}

// Close ends the process and waits for it until ctx is done.
func (k *Client) Close(ctx context.Context) error {
	k.mu.Lock()
	if k.cause == "" {
		k.cause = "it was ended"
	}
	k.mu.Unlock()
	k.c.c.CloseWrite() // it has its end, and we notice its own
	select {
	case <-k.gone:
		return nil
	case <-ctx.Done():
		k.c.Close()
		return fmt.Errorf("the share's server does not end: %w", context.Cause(ctx))
	}
}

var errGone = errors.New("the share's server is gone")

func (k *Client) ask(ctx context.Context, m *Message, file syscall.Conn) error {
	ch := make(chan string, 1)
	k.mu.Lock()
	select {
	case <-k.gone:
		k.mu.Unlock()
		return errGone
	default:
	}
	if len(k.waiting) >= maxAsked {
		k.mu.Unlock()
		return fmt.Errorf("the share's server leaves %d questions without an answer", maxAsked)
	}
	k.last++
	m.ID = k.last
	k.waiting[m.ID] = ch
	k.mu.Unlock()
	forget := func() {
		k.mu.Lock()
		delete(k.waiting, m.ID)
		k.mu.Unlock()
	}
	if err := k.c.Send(m, file); err != nil {
		forget()
		return err
	}
	select {
	case text, ok := <-ch:
		switch {
		case !ok:
			return errGone
		case text != "":
			return errors.New(text)
		}
		return nil
	case <-ctx.Done():
		forget()
		return fmt.Errorf("the share's server does not answer: %w", context.Cause(ctx))
	}
}
