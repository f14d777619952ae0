package egress

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// pass carries bytes between the guest and a server until both have ended, with
// half-close. Where the guest speaks TLS, its first message was or is read here:
//
//	client: ClientHello      checked; what follows waits
//	server: ServerHello      looked at: is it a HelloRetryRequest?
//	client: ClientHello      only then, and checked again
//	both:   opaque
//
// hello is what was read already, or nil: then it is not known yet whether this
// is TLS, and either side may speak first.
func (c *conn) pass(ctx context.Context, server net.Conn, hello *clientHello) {
	p := &passing{c: c, server: server, flight: make(chan bool, 1), ended: make(chan struct{})}
	if hello != nil {
		p.hello.Store(true)
	}
	go func() {
		defer close(p.ended)
		defer p.downEnded.Store(true)
		defer c.rescue()
		if err := p.down(ctx); err != nil && !p.turned.Load() {
			c.close(ending(err, "the server"))
		}
	}()
	err := p.up(ctx, hello)
	p.upEnded.Store(true)
	var no *refusal
	switch {
	case errors.As(err, &no):
		p.turn()
		c.refuse(ctx, no, p.spoken)
	case errors.Is(err, errInspect):
		p.turn()
		if p.spoke.Load() {
			c.refuse(ctx, &refusal{reason: "The name of the server is encrypted (ECH) after the server has spoken."}, p.spoken)
			return
		}
		c.inspect(ctx, *p.second)
	case err != nil:
		// What the server still has to say may be why it takes no more.
		last := time.NewTimer(lastWords)
		defer last.Stop()
		select {
		case <-p.ended:
		case <-last.C:
		case <-ctx.Done():
		}
		c.close(ending(err, "the guest or the server"))
	}
	<-p.ended
}

// turn takes the guest's side away from the server, which is hung up on.
func (p *passing) turn() {
	p.turned.Store(true)
	p.c.drop(p.server)
	<-p.ended
}

// errInspect: the guest's first message has to be answered with its own CA.
var errInspect = errors.New("to be inspected")

// ending says why a connection ended that did not end in order.
func ending(err error, who string) string {
	if errors.Is(err, errIdle) || errors.Is(err, errMaxUp) {
		return err.Error()
	}
	return who + " broke it off"
}

type passing struct {
	c      *conn
	server net.Conn
	second *clientHello // set with errInspect
	spoken []byte       // the guest's last first message, as it was read

	hello     atomic.Bool // a ClientHello was sent to the server, or will be
	spoke     atomic.Bool // the server has said something
	flight    chan bool   // whether its first message was a HelloRetryRequest
	turned    atomic.Bool // the server is hung up on, the guest is not
	upEnded   atomic.Bool
	downEnded atomic.Bool
	ended     chan struct{} // down has returned
}

// up carries what the guest sends.
func (p *passing) up(ctx context.Context, hello *clientHello) error {
	c := p.c
	if hello == nil {
		h, err := p.first()
		p.spoken = h.raw
		switch {
		case errors.Is(err, errNotTLS):
			if err := p.send(h.raw); err != nil {
				return err
			}
			return p.opaque(ctx)
		case errors.Is(err, io.EOF):
			return closeWrite(p.server)
		case err != nil && len(h.raw) == 0:
			return err
		case err != nil:
			return helloRefusal(err)
		}
		if no := c.checkHello(h, false); no != nil {
			return no
		}
		if h.ech {
			p.second = &h
			return errInspect
		}
		// A server that spoke before the client's first message does not speak TLS
		// yet, and will not answer with a ServerHello.
		p.hello.Store(!p.spoke.Load())
		hello = &h
	}
	p.spoken = hello.raw
	if err := p.send(hello.raw); err != nil {
		return err
	}
	if !p.hello.Load() {
		return p.opaque(ctx)
	}
	wait := time.NewTimer(flightTimeout)
	defer wait.Stop()
	select {
	case retry := <-p.flight:
		check := p.notAgain
		if retry {
			check = func() error { return p.again(hello) }
		}
		if err := check(); err != nil {
			if errors.Is(err, io.EOF) {
				return closeWrite(p.server)
			}
			return err
		}
		return p.opaque(ctx)
	case <-wait.C:
		return errIdle
	case <-ctx.Done():
		return ctx.Err()
	}
}

// first waits for the guest's first byte as long as a connection may idle, and
// then reads its first message if it is TLS.
func (p *passing) first() (clientHello, error) {
	c := p.c
	var b [1]byte
	for {
		c.client.SetReadDeadline(time.Now().Add(halfIdleLimit / 2))
		_, err := io.ReadFull(c.client, b[:])
		if err == nil {
			break
		}
		if !isTimeout(err) {
			return clientHello{}, err
		}
		if c.idle() >= idleLimit || p.downEnded.Load() && c.idle() >= halfIdleLimit {
			return clientHello{}, errIdle
		}
	}
	c.client.SetReadDeadline(time.Now().Add(helloTimeout))
	return c.hello(io.MultiReader(bytes.NewReader(b[:]), c.client))
}

// again reads the guest's answer to a HelloRetryRequest: RFC 8446, 4.1.2. It may
// begin with a ChangeCipherSpec (D.4).
func (p *passing) again(before *clientHello) error {
	c := p.c
	c.client.SetReadDeadline(time.Now().Add(helloTimeout))
	var raw []byte
	body, typ, err := readRecord(c.client, &raw, false)
	if err == nil && typ == recordChangeCipherSpec && bytes.Equal(body, []byte{1}) {
		if err := p.send(raw); err != nil {
			return err
		}
		raw = raw[:0]
		_, typ, err = readRecord(c.client, &raw, false)
	}
	if err == nil && typ == recordAlert {
		return p.send(raw) // it gives up
	}
	if err != nil {
		return err
	}
	h, err := c.hello(io.MultiReader(bytes.NewReader(raw), c.client))
	p.spoken = h.raw
	if err != nil {
		return helloRefusal(err)
	}
	if no := c.checkHello(h, false); no != nil {
		return no
	}
	if !strings.EqualFold(h.name, before.name) || h.ech {
		return &refusal{reason: "The TLS connection names another server in its second message."}
	}
	return p.send(h.raw)
}

// notAgain lets the guest's next record through unless it is a ClientHello, for
// which the server did not ask.
func (p *passing) notAgain() error {
	c := p.c
	for range 3 {
		// All records but an empty one have these, and a ChangeCipherSpec no more.
		var b [6]byte
		c.client.SetReadDeadline(time.Now().Add(halfIdleLimit))
		if n, err := io.ReadFull(c.client, b[:]); err != nil {
			if n > 0 {
				p.send(b[:n])
			}
			return err
		}
		if b[0] == recordHandshake && b[5] == typeClientHello {
			p.spoken = b[:]
			return &refusal{reason: "The TLS connection begins a second time."}
		}
		if err := p.send(b[:]); err != nil || b[0] != recordChangeCipherSpec {
			return err
		}
	}
	return nil
}

func (p *passing) send(b []byte) error {
	p.server.SetWriteDeadline(time.Now().Add(flightTimeout))
	n, err := p.server.Write(b)
	p.c.moves(&p.c.up, int64(n))
	return err
}

// opaque carries the rest.
func (p *passing) opaque(ctx context.Context) error {
	return (&flow{c: p.c, dst: p.server, src: p.c.client, count: &p.c.up, up: true, other: &p.downEnded}).run(ctx)
}

// down carries what the server sends, and looks at its first message if that has
// to be a ServerHello.
func (p *passing) down(ctx context.Context) error {
	defer func() {
		select {
		case p.flight <- false:
		default:
		}
	}()
	f := &flow{c: p.c, dst: p.c.client, src: p.server, count: &p.c.down, other: &p.upEnded}
	var first serverFirst
	var buf []byte
	for {
		n, err := 0, f.wait()
		if err == nil {
			if buf == nil {
				buf = make([]byte, 4<<10)
			}
			n, err = f.src.Read(buf)
		}
		if n > 0 {
			p.spoke.Store(true)
			retry, known, bad := first.feed(buf[:n])
			if !p.hello.Load() {
				known, bad = true, nil
			}
			if bad != nil {
				return bad
			}
			f.dst.SetWriteDeadline(time.Now().Add(idleLimit))
			w, werr := f.dst.Write(buf[:n])
			p.c.moves(f.count, int64(w))
			if werr != nil {
				return werr
			}
			if known {
				p.flight <- retry
				break
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return closeWrite(f.dst)
		case errors.Is(err, os.ErrDeadlineExceeded):
			if f.tired() {
				return errIdle
			}
		case err != nil:
			return err
		}
	}
	return f.run(ctx)
}
