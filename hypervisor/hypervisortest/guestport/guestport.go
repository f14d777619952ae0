// Package guestport names the ports that the conformance suite's guest serves.
package guestport

// Boot is where the guest dials the host and obeys.
const Boot = 64

// Ports on which the guest listens.
const (
	// Echo sends back what it gets, and half-closes when the host did.
	Echo uint32 = 101 + iota
	// Sink reads to the end, then sends the sha256 of what it got.
	Sink
	// Source reads 8 bytes (a length, big endian), then sends that many bytes
	// of Stream and half-closes.
	Source
	// Stall accepts and never reads.
	Stall
	// HangUp closes at once.
	HangUp
)

// Nobody listens here.
const Nobody uint32 = 199

// All are the ports on which the guest listens.
var All = []uint32{Echo, Sink, Source, Stall, HangUp}

// Stream makes an endless sequence of bytes that both sides know. The zero
// value stands at its start.
type Stream struct{ off uint64 }

// Read fills p; it never fails.
func (s *Stream) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(word(s.off/8) >> (s.off % 8 * 8))
		s.off++
	}
	return len(p), nil
}

// word is splitmix64, by Sebastiano Vigna (public domain).
func word(n uint64) uint64 {
	z := (n + 1) * 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}
