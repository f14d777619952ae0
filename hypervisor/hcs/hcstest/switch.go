// Package hcstest carries the streams of machines that have no Hyper-V: those of
// the fake computecore.dll (hypervisor/hcs/testdata), which are processes. It is
// for tests alone.
package hcstest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
)

// A switch carries the streams of the fake's machines, which have no Hyper-V's
// sockets, over TCP on loopback. Each connection begins with who wants what, and
// is answered by one byte: 1 is yes.

// Ports of the switch that no guest has.
const (
	Console  uint32 = 1<<32 - 1 // what the guest's console writes
	register uint32 = 1<<32 - 2
)

// buffer keeps what is under way small, in bytes, so that a paused guest is soon
// seen to be silent.
const buffer = 32 << 10

// Switch is the host's side.
type Switch struct {
	ln net.Listener
	wg sync.WaitGroup

	mu     sync.Mutex
	ports  map[string]*port  // of the host, by guest and number
	guests map[string]string // where a guest's own ports are dialled
}

// Address is the variable in which a machine finds its switch.
const Address = "FAKE_HCS_SWITCH"

// Errors of Dial, as what stands for them on Windows says it.
var (
	// ErrNotUp says that the guest has not come so far.
	ErrNotUp = errors.New("the guest is not up")
	// ErrRefused says that nobody listens on the port.
	ErrRefused = errors.New("nobody listens there")
)

// New starts a switch. Its address is for the machines' environment.
func New() (*Switch, string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	s := &Switch{ln: ln, ports: map[string]*port{}, guests: map[string]string{}}
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.take(small(c)) })
		}
	})
	return s, ln.Addr().String(), nil
}

// Close ends it.
func (s *Switch) Close() {
	s.ln.Close()
	s.wg.Wait()
}

func key(id string, number uint32) string { return fmt.Sprint(id, " ", number) }

// take takes a guest's connection to the one that it wants.
func (s *Switch) take(c net.Conn) {
	head := make([]byte, 40)
	if _, err := io.ReadFull(c, head); err != nil {
		c.Close()
		return
	}
	id, number := string(head[:36]), binary.BigEndian.Uint32(head[36:])
	if number == register {
		c.Write([]byte{1})
		line, err := bufio.NewReader(c).ReadString('\n')
		if err == nil {
			s.mu.Lock()
			s.guests[id] = strings.TrimSpace(line)
			s.mu.Unlock()
			c.Write([]byte{1})
		}
		c.Close()
		return
	}
	s.mu.Lock()
	p := s.ports[key(id, number)]
	ok := p != nil && len(p.in) < cap(p.in)
	if ok {
		p.in <- c // there is room
	}
	s.mu.Unlock()
	if !ok {
		c.Write([]byte{0})
		c.Close()
		return
	}
	c.Write([]byte{1}) // to nobody, if it was closed meanwhile
}

// Dial opens a stream to a guest's port.
func (s *Switch) Dial(ctx context.Context, id string, number uint32) (net.Conn, error) {
	s.mu.Lock()
	where := s.guests[id]
	s.mu.Unlock()
	if where == "" {
		return nil, ErrNotUp
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", where)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	return asked(small(c), binary.BigEndian.AppendUint32(nil, number))
}

// asked sends a head and takes the answer.
func asked(c net.Conn, head []byte) (net.Conn, error) {
	_, err := c.Write(head)
	answer := make([]byte, 1)
	if err == nil {
		_, err = io.ReadFull(c, answer)
	}
	if err == nil && answer[0] != 1 {
		err = ErrRefused
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// port is one of the host for one guest.
type port struct {
	s    *Switch
	key  string
	in   chan net.Conn // the guest's streams that nobody accepted yet
	done chan struct{}
	once sync.Once
}

// Listen takes the streams that a guest opens to a port of its host.
func (s *Switch) Listen(id string, number uint32) (net.Listener, error) {
	k := key(id, number)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports[k] != nil {
		return nil, errors.New("somebody listens there")
	}
	p := &port{s: s, key: k, in: make(chan net.Conn, 128), done: make(chan struct{})}
	s.ports[k] = p
	return p, nil
}

func (p *port) Accept() (net.Conn, error) {
	select {
	case c := <-p.in:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *port) Close() error {
	p.once.Do(func() {
		close(p.done)
		p.s.mu.Lock()
		delete(p.s.ports, p.key)
		p.s.mu.Unlock()
		for len(p.in) > 0 { // nothing is put there any more
			(<-p.in).Close()
		}
	})
	return nil
}

func (p *port) Addr() net.Addr { return p.s.ln.Addr() }

func small(c net.Conn) net.Conn {
	c.(*net.TCPConn).SetReadBuffer(buffer)
	c.(*net.TCPConn).SetWriteBuffer(buffer)
	return c
}

// Reach is the guest's way to a port of its host.
func Reach(id string, number uint32) (net.Conn, error) {
	c, err := net.Dial("tcp", os.Getenv(Address))
	if err != nil {
		return nil, err
	}
	return asked(small(c), binary.BigEndian.AppendUint32([]byte(id), number))
}

// Serve lets the host dial a guest's ports, of which has says whether somebody
// listens there. When it returns without an error the host knows where they are.
func Serve(id string, has func(port uint32) bool, serve func(port uint32, c net.Conn)) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				var head [4]byte
				if _, err := io.ReadFull(small(c), head[:]); err != nil {
					return
				}
				number := binary.BigEndian.Uint32(head[:])
				if !has(number) {
					c.Write([]byte{0})
					c.Close()
					return
				}
				c.Write([]byte{1})
				serve(number, c)
			}()
		}
	}()
	c, err := Reach(id, register)
	if err != nil {
		return err
	}
	fmt.Fprintln(c, ln.Addr())
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}
