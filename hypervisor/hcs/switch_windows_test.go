package hcs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/Microsoft/go-winio/pkg/guid"
	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
)

// A switch carries the streams of the fake's machines, which have no Hyper-V's
// sockets, over TCP on loopback. Each connection begins with who wants what, and
// is answered by one byte: 1 is yes.

// Ports of the switch that no guest has.
const (
	consolePort  uint32 = 1<<32 - 1
	registerPort uint32 = 1<<32 - 2
)

// buffer keeps what is under way small, in bytes, so that a paused guest is soon
// seen to be silent.
const buffer = 32 << 10

type switchboard struct {
	ln net.Listener
	wg sync.WaitGroup

	mu     sync.Mutex
	ports  map[string]*port  // of the host, by guest and number
	guests map[string]string // where a guest's own ports are dialled
}

// newSwitch starts one, which ends with the test.
func newSwitch(t testing.TB) *switchboard {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &switchboard{ln: ln, ports: map[string]*port{}, guests: map[string]string{}}
	setenv(t, "FAKE_HCS_SWITCH", ln.Addr().String())
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.take(small(c)) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		s.wg.Wait()
	})
	return s
}

func (s *switchboard) carrier() carrier {
	return carrier{
		dial:   s.dial,
		listen: func(vm guid.GUID, number uint32) (net.Listener, error) { return s.listen(key(vm.String(), number)) },
		pipe: func(name, descriptor string) (net.Listener, error) {
			id := strings.TrimSuffix(strings.TrimPrefix(name, `\\.\pipe\carrel-`), "-console")
			if !strings.HasPrefix(descriptor, "D:P(A;;FA;;;SY)(A;;FA;;;S-1-") || name != ConsolePipe(id) {
				return nil, fmt.Errorf("a console %s with the access list %s", name, descriptor)
			}
			return s.listen(key(id, consolePort))
		},
	}
}

func key(id string, number uint32) string { return fmt.Sprint(id, " ", number) }

// take takes a guest's connection to the one that it wants.
func (s *switchboard) take(c net.Conn) {
	head := make([]byte, 40)
	if _, err := io.ReadFull(c, head); err != nil {
		c.Close()
		return
	}
	id, number := string(head[:36]), binary.BigEndian.Uint32(head[36:])
	if number == registerPort {
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

func (s *switchboard) dial(ctx context.Context, vm guid.GUID, number uint32) (net.Conn, error) {
	s.mu.Lock()
	where := s.guests[vm.String()]
	s.mu.Unlock()
	if where == "" {
		return nil, &net.OpError{Op: "dial", Net: "hvsock", Err: os.NewSyscallError("connectex", windows.WSAENETUNREACH)}
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
		err = windows.WSAECONNREFUSED
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// port is one of the host for one guest.
type port struct {
	s    *switchboard
	key  string
	in   chan net.Conn // the guest's streams that nobody accepted yet
	done chan struct{}
	once sync.Once
}

func (s *switchboard) listen(k string) (net.Listener, error) {
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

// dialSwitch is the guest's way to a port of the host.
func dialSwitch(id string, number uint32) (net.Conn, error) {
	c, err := net.Dial("tcp", os.Getenv("FAKE_HCS_SWITCH"))
	if err != nil {
		return nil, err
	}
	return asked(small(c), binary.BigEndian.AppendUint32([]byte(id), number))
}

// serveDials is the guest's side of the host's dials.
func serveDials(g guestport.Guest, ln net.Listener) {
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
			if !slices.Contains(guestport.All, number) {
				c.Write([]byte{0})
				c.Close()
				return
			}
			c.Write([]byte{1})
			g.Serve(number, c)
		}()
	}
}
