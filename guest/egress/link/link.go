// Package link is what a keeper and its guest's egress process say to each
// other, over a socket pair that the daemon made when it started both. The
// keeper hands over the guest's streams; the egress process hands back what the
// guest is told. When either end is gone, so is the guest's way out.
package link

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/carrel-vm/carrel/guest/packet"
)

// A message is one packet of JSON, and may carry one descriptor (SCM_RIGHTS,
// unix(7)). Neither end trusts the other: the keeper parses what the guest
// says, the egress process what the world says.
//
//	keeper -> egress process: stream, with the stream; ask
//	egress process -> keeper: hello, in one or more pieces, first of all;
//	                          refused; forward, with the connection; ended; ports; told

// Kind says what a message is about.
type Kind string

// The kinds of messages.
const (
	// Stream hands over a stream that the guest opened.
	Stream Kind = "stream"
	// Hello says what the guest has to trust.
	Hello Kind = "hello"
	// Refused is one line for a task's transcript.
	Refused Kind = "refused"
	// Forward hands over a connection that is meant for a port of the guest.
	Forward Kind = "forward"
	// Ended says that one of the streams that were handed over has ended.
	Ended Kind = "ended"
	// Ports says how many ports of the host lead into the guest.
	Ports Kind = "ports"
	// Ask asks for Told, which says that what was refused before it was asked for is told.
	Ask  Kind = "ask"
	Told Kind = "told"
)

// Bounds, in bytes.
const (
	// MaxMessage is the largest message.
	MaxMessage = packet.Max
	// MaxLine is the longest line of a refusal.
	MaxLine = 1024
	// MaxTrust is how much a guest may be told to trust.
	MaxTrust = 512 << 10

	maxTask  = 64
	maxPorts = 1 << 16
	trustBit = 32 << 10 // of Trust in one message: base64 makes a third more of it
)

// Message is one of them.
type Message struct {
	Kind Kind `json:"kind"`
	// Trust, of Hello, is a piece of PEM; More says that another follows.
	Trust []byte `json:"trust,omitempty"`
	More  bool   `json:"more,omitempty"`
	// Task and Line, of Refused: the guest's word for the task, or empty, and
	// what it is told.
	Task string `json:"task,omitempty"`
	Line string `json:"line,omitempty"`
	// Port, of Forward, is the guest's.
	Port uint16 `json:"port,omitempty"`
	// Count, of Ports.
	Count int `json:"count,omitempty"`
	// Number, of Ask and of the Told that answers it.
	Number int64 `json:"number,omitempty"`
}

// ErrMessage is returned for a message that is not one.
var ErrMessage = errors.New("bad message on the link")

func bad(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrMessage, fmt.Sprintf(format, a...))
}

// decode reads one packet. withConn says whether a descriptor came with it.
func decode(b []byte, withConn bool) (*Message, error) {
	if len(b) > MaxMessage {
		return nil, bad("%d bytes; %d are possible", len(b), MaxMessage)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	m := new(Message)
	if err := dec.Decode(m); err != nil {
		return nil, bad("%v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, bad("more than one value")
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	if want := m.Kind == Stream || m.Kind == Forward; want != withConn {
		return nil, bad("%s with a connection: %v", m.Kind, withConn)
	}
	return m, nil
}

// check says what is wrong with a message.
func (m *Message) check() error {
	only := Message{Kind: m.Kind}
	switch m.Kind {
	case Stream:
	case Hello:
		only.More = m.More
		if len(m.Trust) > trustBit {
			return bad("a piece of %d bytes", len(m.Trust))
		}
		if m.Task != "" || m.Line != "" || m.Port != 0 || m.Count != 0 || m.Number != 0 {
			return bad("a field that %s does not have", m.Kind)
		}
		return nil
	case Refused:
		only.Task, only.Line = m.Task, m.Line
		switch {
		case m.Line == "" || len(m.Line) > MaxLine || !utf8.ValidString(m.Line):
			return bad("a line of %d bytes", len(m.Line))
		case len(m.Task) > maxTask || !word(m.Task):
			return bad("the task %.80q", m.Task)
		}
	case Forward:
		only.Port = m.Port
		if m.Port == 0 {
			return bad("no port")
		}
	case Ended:
	case Ask, Told:
		only.Number = m.Number
	case Ports:
		if only.Count = m.Count; m.Count < 0 || m.Count > maxPorts {
			return bad("%d ports", m.Count)
		}
	default:
		return bad("the kind %.40q", m.Kind)
	}
	if m.Count != only.Count || m.Number != only.Number || len(m.Trust) != 0 || m.More != only.More || m.Task != only.Task || m.Line != only.Line || m.Port != only.Port {
		return bad("a field that %s does not have", m.Kind)
	}
	return nil
}

func word(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// Trust puts the pieces of Hello together.
type Trust struct {
	pem  []byte
	done bool
}

// Add takes the next piece; done says that it was the last.
func (t *Trust) Add(m *Message) (done bool, err error) {
	switch {
	case m.Kind != Hello:
		return false, bad("%s came before hello was whole", m.Kind)
	case t.done:
		return false, bad("a second hello")
	case len(t.pem)+len(m.Trust) > MaxTrust:
		return false, bad("certificates of more than %d bytes", MaxTrust)
	}
	t.pem = append(t.pem, m.Trust...)
	t.done = !m.More
	return t.done, nil
}

// PEM returns what was put together, once Add said that it is done.
func (t *Trust) PEM() []byte { return t.pem }
