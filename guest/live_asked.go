package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/carrel-vm/carrel/guest/share/control"
)

// On Windows a keeper can start processes while its guest runs, and a link that is
// in use cannot be handed to another process. So the keeper starts the process of
// a share that is added, too, and nobody has to open a process for it:
//
//	daemon -> keeper: what is to be served
//	keeper -> daemon: it is, or why not
//	daemon -> keeper: it shall be kept for AttachShare, with its tag
//	keeper -> daemon: it is
//
// The process ends if the stream does before that, and otherwise with its keeper.

// maxAsked bounds all that is said to a keeper on such a stream, in bytes.
const maxAsked = control.MaxSpec + 4<<10

// asking is a share's process on its way, as the daemon has it.
type asking struct {
	c    net.Conn
	said *json.Decoder
	tag  string
}

// askShare says on a stream to a keeper what is to be served, and returns when it
// is. c becomes the result's, also on an error.
func askShare(ctx context.Context, c net.Conn, spec ShareSpec) (_ Live, err error) {
	a := &asking{c: c, said: json.NewDecoder(io.LimitReader(c, 64<<10)), tag: spec.Tag}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, shareReady, errors.New("its server was not ready in time"))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	b, err := json.Marshal(spec)
	if err == nil && len(b) > control.MaxSpec {
		err = fmt.Errorf("rules of %d bytes; %d are possible", len(b), control.MaxSpec)
	}
	if err == nil {
		if _, err = c.Write(b); err == nil {
			err = a.answered()
		}
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (a *asking) answered() error {
	var answer handed
	if err := a.said.Decode(&answer); err != nil {
		return fmt.Errorf("the guest's keeper does not answer: %w", err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	return nil
}

// Hand implements Live.
func (a *asking) Hand() error {
	a.c.SetDeadline(time.Now().Add(handTimeout))
	err := json.NewEncoder(a.c).Encode(handed{Tag: a.tag})
	if err == nil {
		err = a.answered()
	}
	if err != nil {
		return fmt.Errorf("hand a share to the guest's keeper: %w", err)
	}
	return nil
}

// Close implements Live.
func (a *asking) Close() error { return a.c.Close() }

// acceptAsked serves what listens until it is closed, and waits for all that it
// began, which ctx ends.
func (s *shelf) acceptAsked(ctx context.Context, start func(context.Context, ShareSpec) (*control.Conn, error)) {
	places := make(chan struct{}, maxShelf)
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		select {
		case places <- struct{}{}:
			s.done.Go(func() {
				s.asked(ctx, c, start)
				<-places
			})
		default:
			c.Close()
		}
	}
}

// asked is the keeper's end of one stream.
func (s *shelf) asked(ctx context.Context, c net.Conn, start func(context.Context, ShareSpec) (*control.Conn, error)) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	c.SetDeadline(time.Now().Add(handTimeout))
	said := json.NewDecoder(io.LimitReader(c, maxAsked))
	said.DisallowUnknownFields()
	answer := func(err error) bool {
		c.SetWriteDeadline(time.Now().Add(handTimeout))
		werr := json.NewEncoder(c).Encode(handed{Error: control.Text(err)})
		return err == nil && werr == nil
	}
	var spec ShareSpec
	if err := said.Decode(&spec); err != nil || !goodTag(spec.Tag) {
		answer(errors.New("no share came that could be one"))
		return
	}
	if start == nil {
		answer(errors.New("this boundary has nothing that serves it"))
		return
	}
	conn, err := start(ctx, spec)
	if err != nil {
		answer(err)
		return
	}
	c.SetReadDeadline(time.Time{}) // other shares of the same guest may have to start first
	var keep handed
	if !answer(nil) || said.Decode(&keep) != nil || keep.Tag != spec.Tag {
		conn.Close()
		return
	}
	if !s.put(spec.Tag, conn) {
		conn.Close()
		answer(errFull)
		return
	}
	answer(nil)
}
