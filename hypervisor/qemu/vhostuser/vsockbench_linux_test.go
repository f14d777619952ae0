package vhostuser

import (
	"io"
	"testing"
	"time"
)

func BenchmarkVsockRoundTrip(b *testing.B) {
	g := newVsockGuest(b)
	g.listen(10, echoStream)
	c := dial(b, g, 10)
	c.SetDeadline(time.Time{})
	p := make([]byte, 64)
	for b.Loop() {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVsockToGuest(b *testing.B) {
	g := newVsockGuest(b)
	g.listen(11, func(s *guestStream) { io.Copy(io.Discard, s) })
	c := dial(b, g, 11)
	c.SetDeadline(time.Time{})
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVsockToHost(b *testing.B) {
	g := newVsockGuest(b)
	p := make([]byte, 64<<10)
	g.listen(12, func(s *guestStream) {
		for {
			if _, err := s.Write(p); err != nil {
				return
			}
		}
	})
	c := dial(b, g, 12)
	c.SetDeadline(time.Time{})
	q := make([]byte, 64<<10)
	b.SetBytes(int64(len(q)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.ReadFull(c, q); err != nil {
			b.Fatal(err)
		}
	}
}
