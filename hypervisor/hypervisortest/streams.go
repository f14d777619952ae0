//go:build linux || windows || darwin

package hypervisortest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/carrel-vm/carrel/hypervisor"
	"github.com/carrel-vm/carrel/hypervisor/hypervisortest/guestport"
)

// sizes sit around the guest's packet of 3,732 bytes and the largest packet
// of 64 KiB; see virtio 1.2, 5.10, and Linux's virtio_vsock.
var sizes = []int64{0, 1, 63, 3731, 3732, 3733, 65535, 65536, 65537, 300_000, 16<<20 + 5}

func (s Suite) streams(t *testing.T) {
	g := s.start(t)
	part := func(name string, f func(*testing.T, *guest)) {
		t.Run(name, func(t *testing.T) {
			sub := &guest{VM: g.VM, t: t, boot: g.boot, lines: g.lines}
			f(t, sub)
		})
	}
	part("ToGuest", toGuest)
	part("FromGuest", fromGuest)
	part("HalfClose", halfClose)
	part("Many", many)
	part("Stalled", stalled)
	part("Deadlines", deadlines)
	part("HangUp", hangUp)
	part("GuestDials", guestDials)
	if s.Machine {
		part("Refused", refused)
		part("Disks", func(t *testing.T, sub *guest) { disks(t, sub, s.Config) })
	}
	part("Flood", func(t *testing.T, sub *guest) { flood(t, sub, g) })
}

// sink sends n bytes and checks the guest's digest of them.
func sink(c net.Conn, n int64) error {
	c.SetDeadline(time.Now().Add(bound))
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(c, h), new(guestport.Stream), n); err != nil {
		return err
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, h.Sum(nil)) {
		return fmt.Errorf("%d bytes arrived as others: digest %x", n, got)
	}
	return nil
}

// source has the guest send n bytes and checks them.
func source(c net.Conn, n int64) error {
	c.SetDeadline(time.Now().Add(bound))
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(n))); err != nil {
		return err
	}
	got, want := sha256.New(), sha256.New()
	m, err := io.Copy(got, c)
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", m, n, err)
	}
	io.CopyN(want, new(guestport.Stream), n)
	if m != n || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return fmt.Errorf("%d bytes arrived of %d, or others", m, n)
	}
	return nil
}

func toGuest(t *testing.T, g *guest) {
	for _, n := range sizes {
		start := time.Now()
		if err := sink(g.dial(guestport.Sink), n); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		if n > 1<<20 {
			t.Logf("%.0f MiB/s", float64(n)/(1<<20)/time.Since(start).Seconds())
		}
	}
}

func fromGuest(t *testing.T, g *guest) {
	for _, n := range sizes {
		start := time.Now()
		if err := source(g.dial(guestport.Source), n); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
		if n > 1<<20 {
			t.Logf("%.0f MiB/s", float64(n)/(1<<20)/time.Since(start).Seconds())
		}
	}
}

// halfClose ends one direction and uses the other.
func halfClose(t *testing.T, g *guest) {
	c := g.dial(guestport.Echo)
	if _, err := io.WriteString(c, "one"); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "two"); err == nil {
		t.Error("a write after CloseWrite")
	}
	if got, err := readAll(c, bound); err != nil || string(got) != "one" {
		t.Errorf("read %q, %v", got, err)
	}
}

// many opens 100 streams at once; each carries its own bytes both ways.
func many(t *testing.T, g *guest) {
	var wg sync.WaitGroup
	for i := range 100 {
		c := g.dial(guestport.Echo)
		wg.Go(func() {
			want := bytes.Repeat([]byte(fmt.Sprintf("stream %03d|", i)), 2000)
			go func() { // ends with the stream
				c.Write(want)
				c.(interface{ CloseWrite() error }).CloseWrite()
			}()
			if got, err := readAll(c, bound); err != nil || !bytes.Equal(got, want) {
				t.Errorf("stream %d: %d bytes of %d, %v", i, len(got), len(want), err)
			}
			c.Close()
		})
	}
	wg.Wait()
}

// stalled fills a stream that nobody reads; another goes on.
func stalled(t *testing.T, g *guest) {
	c := g.dial(guestport.Stall)
	c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	n, err := io.CopyN(c, new(guestport.Stream), 16<<20)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stream that nobody reads took %d bytes: %v", n, err)
	}
	if err := sink(g.dial(guestport.Sink), 1<<20); err != nil {
		t.Errorf("beside it: %v", err)
	}
	if err := source(g.dial(guestport.Source), 1<<20); err != nil {
		t.Errorf("beside it: %v", err)
	}
}

func deadlines(t *testing.T, g *guest) {
	c := g.dial(guestport.Echo)
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	c.SetReadDeadline(time.Now().Add(bound))
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Errorf("after a deadline was moved: %v", err)
	}
	done := make(chan error, 1)
	go func() { _, err := c.Read(make([]byte, 1)); done <- err }()
	c.Close()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a read of a closed stream returned a byte")
		}
	case <-time.After(bound):
		t.Error("Close does not wake a reader")
	}
}

// hangUp reads what a peer leaves that closed at once.
func hangUp(t *testing.T, g *guest) {
	for range 20 {
		if got, err := readAll(g.dial(guestport.HangUp), bound); len(got) != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("read %q, %v", got, err)
		}
	}
}

func refused(t *testing.T, g *guest) {
	start := time.Now()
	c, err := g.Dial(t.Context(), guestport.Nobody)
	if err == nil {
		c.Close()
		t.Fatal("a port on which nobody listens took a stream")
	}
	if took := time.Since(start); took > bound {
		t.Errorf("the refusal took %v", took)
	}
}

// guestDials has the guest open streams to the host.
func guestDials(t *testing.T, g *guest) {
	const port = 300
	if answer := g.ask(fmt.Sprint("dial ", port)); answer == "" {
		t.Error("a port of the host on which nobody listens took a stream")
	}
	ln, err := g.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for range 10 {
		if answer := g.ask(fmt.Sprint("dial ", port)); answer != "" {
			t.Fatal(answer)
		}
		c := accept(t, ln)
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Fatal(err)
		}
		c.(interface{ CloseWrite() error }).CloseWrite()
		if got, err := readAll(c, bound); err != nil || string(got) != "hello" {
			t.Errorf("read %q, %v", got, err)
		}
		c.Close()
	}
}

// disks reads the root image and writes the scratch disk; the root image stays
// as it is whatever the guest tries.
func disks(t *testing.T, g *guest, cfg hypervisor.Config) {
	const n = 64 << 10
	digest := func(file string, off int64) string {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(f, off, n)); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", h.Sum(nil))
	}
	before := digest(cfg.Root, 0)
	if got := g.ask(fmt.Sprint("digest vda 0 ", n)); got != before {
		t.Errorf("the root image reads as %s", got)
	}
	if got := g.ask(fmt.Sprint("write vda 0 ", n)); got == "ok" {
		t.Error("the guest can write its root image")
	}
	if digest(cfg.Root, 0) != before {
		t.Error("the guest changed its root image")
	}
	if cfg.Scratch == "" {
		return
	}
	const off = 128 << 10
	if got := g.ask(fmt.Sprint("write vdb ", off, " ", n)); got != "ok" {
		t.Errorf("write to the scratch disk: %s", got)
	}
	h := sha256.New()
	io.CopyN(h, new(guestport.Stream), n)
	if got := digest(cfg.Scratch, off); got != fmt.Sprintf("%x", h.Sum(nil)) {
		t.Error("what the guest wrote and synced is not on the host")
	}
}

// flood has the guest print without an end; streams go on. It comes last: the
// guest keeps printing.
func flood(t *testing.T, g, whole *guest) {
	before := whole.printedBytes()
	g.ask("flood")
	for range 20 {
		c := g.dial(guestport.Echo)
		c.SetDeadline(time.Now().Add(bound))
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	start := time.Now()
	for whole.printedBytes()-before < 64<<10 {
		if time.Since(start) > bound {
			t.Fatalf("the console gave %d bytes of a flood", whole.printedBytes()-before)
		}
		c := g.dial(guestport.Echo) // something to do meanwhile
		c.Close()
	}
	t.Logf("%d KiB printed in %v", (whole.printedBytes()-before)>>10, time.Since(start))
}
