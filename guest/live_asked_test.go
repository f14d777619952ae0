package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/share/control"
)

// pipes is what a keeper listens on, as a named pipe of Windows is: each dial is
// one stream.
type pipes struct {
	news chan net.Conn
	done chan struct{}
}

func newPipes() *pipes { return &pipes{news: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.news:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { close(p.done); return nil }
func (p *pipes) Addr() net.Addr { return nil }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.news <- theirs
	return ours
}

// asks is a shelf that takes shares as on Windows. Each that it starts is one end
// of a control socket, whose other end comes on the channel.
func asks(t *testing.T, start func(context.Context, ShareSpec) error) (*shelf, *pipes, <-chan *control.Conn) {
	t.Helper()
	p, started := newPipes(), make(chan *control.Conn, maxShelf)
	ctx, stop := context.WithCancel(t.Context())
	s := &shelf{ln: p, stop: stop, kept: map[string]*control.Conn{}}
	s.done.Go(func() {
		s.acceptAsked(ctx, func(ctx context.Context, spec ShareSpec) (*control.Conn, error) {
			if start != nil {
				if err := start(ctx, spec); err != nil {
					return nil, err
				}
			}
			a, b, err := control.Pair()
			if err != nil {
				return nil, err
			}
			other, err := control.New(b)
			if err != nil {
				return nil, err
			}
			started <- other
			return control.New(a)
		})
	})
	return s, p, started
}

// A share's process is started by the keeper, kept once it is told so, and there
// for AttachShare by its tag.
func TestAskedShare(t *testing.T) {
	var got ShareSpec
	s, p, started := asks(t, func(_ context.Context, spec ShareSpec) error { got = spec; return nil })
	defer s.close()
	want := ShareSpec{Tag: "l1", Path: `C:\folder`, Dev: 1, Ino: 1 << 63, Store: `C:\store`, Owner: 1000}
	a, err := askShare(t.Context(), p.dial(), want)
	if err != nil {
		t.Fatal(err)
	}
	process := <-started
	if got.Path != want.Path || got.Ino != want.Ino || got.Store != want.Store {
		t.Errorf("started: %+v", got)
	}
	if c := s.get("l1"); c != nil {
		t.Error("it is there before it was handed over")
	}
	if err := a.Hand(); err != nil {
		t.Fatal(err)
	}
	a.Close()
	c := s.get("l1")
	if c == nil {
		t.Fatal("it is not there")
	}
	if err := c.Send(&control.Message{Kind: control.Close, ID: 7}, nil); err != nil {
		t.Fatal(err)
	}
	if m, _, err := process.Receive(); err != nil || m.ID != 7 {
		t.Errorf("another process: %v %v", m, err)
	}
	c.Close()
}

// What is let go of before it is handed over ends, and so does what waits when
// its keeper does.
func TestAskedShareEnds(t *testing.T) {
	s, p, started := asks(t, nil)
	ended := func(what string) {
		t.Helper()
		if _, _, err := (<-started).Receive(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %v", what, err)
		}
	}
	a, err := askShare(t.Context(), p.dial(), ShareSpec{Tag: "l1"})
	if err != nil {
		t.Fatal(err)
	}
	a.Close()
	ended("let go of")
	if a, err = askShare(t.Context(), p.dial(), ShareSpec{Tag: "l2"}); err != nil {
		t.Fatal(err)
	}
	a.(*asking).tag = "l3"
	if err := a.Hand(); err == nil {
		t.Error("a process is kept as another share's")
	}
	ended("handed over as another")
	if a, err = askShare(t.Context(), p.dial(), ShareSpec{Tag: "l4"}); err == nil {
		err = a.Hand()
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := askShare(t.Context(), p.dial(), ShareSpec{Tag: "l5"})
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	ended("kept as the keeper ends")
	ended("on its way as the keeper ends")
	if err := b.Hand(); err == nil {
		t.Error("handed to nobody")
	}
}

// What is no share is refused, and a process that does not start says why.
func TestAskedShareRefused(t *testing.T) {
	s, p, started := asks(t, func(ctx context.Context, spec ShareSpec) error {
		if spec.Tag == "hangs" {
			<-ctx.Done()
			return ctx.Err()
		}
		return errors.New("the folder was replaced")
	})
	if _, err := askShare(t.Context(), p.dial(), ShareSpec{Tag: "l1"}); err == nil || err.Error() != "the folder was replaced" {
		t.Errorf("%v", err)
	}
	for _, text := range []string{`{"Tag":""}`, `{"Tag":"../x"}`, `{"Tag":"l1","Widens":true}`, `[]`, `x`} {
		c := p.dial()
		go io.WriteString(c, text)
		b, err := io.ReadAll(c)
		if err != nil || !strings.Contains(string(b), "no share came") {
			t.Errorf("%s: %q %v", text, b, err)
		}
	}
	gone, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("nobody waits"))
	if _, err := askShare(gone, p.dial(), ShareSpec{Tag: "l2"}); err == nil || err.Error() != "nobody waits" {
		t.Errorf("%v", err)
	}
	asked := make(chan error, 1)
	c := p.dial()
	go func() {
		_, err := askShare(t.Context(), c, ShareSpec{Tag: "hangs"})
		asked <- err
	}()
	select {
	case err := <-asked:
		t.Errorf("it did not wait: %v", err)
	default:
	}
	s.close()
	if err := <-asked; err == nil {
		t.Error("a process that does not start is served")
	}
	if len(started) > 0 {
		t.Error("something was started")
	}
}
