//go:build unix

package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/carrel-vm/carrel/guest/packet"
	"github.com/carrel-vm/carrel/guest/share/control"
)

// handing is a share's process on its way to a keeper.
type handing struct {
	*control.Conn
	run, name, tag string
}

func (h *handing) Hand() error { return HandShare(h.run, h.name, h.tag, h.Conn) }

// ServeLive starts the process of a share for a guest that runs.
func ServeLive(ctx context.Context, run, name string, spec ShareSpec, o ShareStart) (Live, error) {
	o.Outlive = true
	c, err := StartShare(ctx, spec, o)
	if err != nil {
		return nil, err
	}
	return &handing{c, run, name, spec.Tag}, nil
}

// HandShare gives the control socket of a share's process to a guest's keeper,
// for AttachShare with the same tag. control stays the caller's.
func HandShare(run, name, tag string, control syscall.Conn) error {
	c, err := net.DialTimeout(shelfNetwork, ShareSocketPath(run, name), handTimeout)
	if err != nil {
		return fmt.Errorf("hand a share to the guest's keeper: %w", err)
	}
	p, err := packet.From(c.(*net.UnixConn))
	if err != nil {
		c.Close()
		return err
	}
	defer p.Close()
	p.SetReadDeadline(time.Now().Add(handTimeout))
	b, err := json.Marshal(handed{Tag: tag})
	if err != nil {
		return err
	}
	if err := p.Send(b, control); err != nil {
		return fmt.Errorf("hand a share to the guest's keeper: %w", err)
	}
	b, f, err := p.Receive()
	if f != nil {
		f.Close()
	}
	var answer handed
	if err == nil {
		err = json.Unmarshal(b, &answer)
	}
	if err == nil && answer.Error != "" {
		err = errors.New(answer.Error)
	}
	if err != nil {
		return fmt.Errorf("hand a share to the guest's keeper: %w", err)
	}
	return nil
}

func listenShelf(path string) (net.Listener, error) { return listenPrivate(shelfNetwork, path) }

// accept takes one at a time: there is one daemon.
func (s *shelf) accept(context.Context, func(context.Context, ShareSpec) (*control.Conn, error)) {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.receive(c.(*net.UnixConn))
	}
}

func (s *shelf) receive(c *net.UnixConn) {
	p, err := packet.From(c)
	if err != nil {
		c.Close()
		return
	}
	defer p.Close()
	p.SetReadDeadline(time.Now().Add(handTimeout))
	b, f, err := p.Receive()
	if err != nil {
		return
	}
	var said, answer handed
	switch {
	case f == nil:
		answer.Error = "no control socket came"
	case json.Unmarshal(b, &said) != nil || !goodTag(said.Tag):
		answer.Error = "no tag came that could be one"
		f.Close()
	default:
		conn, err := control.New(f)
		if err == nil && !s.put(said.Tag, conn) {
			conn.Close()
			err = errFull
		}
		answer.Error = control.Text(err)
	}
	if b, err := json.Marshal(answer); err == nil {
		p.Send(b, nil)
	}
}
