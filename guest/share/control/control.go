// Package control is what a share process and its keeper say to each other. The
// share process parses what a guest writes; the keeper hands it the streams, and
// reads no byte of them.
package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/carrel-vm/carrel/guest/packet"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

// A message is one packet of JSON, and may bring one file.
//
//	who starts the process -> it: spec, in pieces; it answers ready
//	keeper -> process:            carriers (VirtioFS, Stream, Device), each with its file
//	                              Session, Review with its stream, Close; each is answered done
//	process -> keeper:            ready, done, and ended when it serves nothing any more
//
// The end of the socket ends the process.

// Kind says what a message is about.
type Kind string

// The kinds of messages.
const (
	// Configure brings a piece of the Spec.
	Configure Kind = "spec"
	// VirtioFS hands over a socket on which QEMU's virtio-fs device speaks
	// vhost-user, Stream one with raw FUSE messages, Device an open /dev/fuse.
	VirtioFS Kind = "virtio-fs"
	Stream   Kind = "stream"
	Device   Kind = "device"
	// Session begins a new set of pre-images, for the task that is named.
	Session Kind = "task"
	// Review hands over a stream on which the guest says what it has changed.
	Review Kind = "review"
	// Close ends every carrier and lets go of the folder: once it is answered
	// nothing reaches that any more, and the guest has EIO.
	Close Kind = "close"

	// Ready answers the Spec; an error says why nothing is served.
	Ready Kind = "ready"
	// Done answers the message of the same ID.
	Done Kind = "done"
	// Ended says that a carrier's service is over, and why if not in order.
	Ended Kind = "ended"
)

// Message is one of them.
type Message struct {
	Kind Kind `json:"kind"`
	// ID is the asker's; Done repeats it.
	ID uint64 `json:"id,omitempty"`
	// Piece, of Configure, is a piece of JSON; More says that another follows.
	Piece []byte `json:"piece,omitempty"`
	More  bool   `json:"more,omitempty"`
	// Task, of Session and Review, is the task's id.
	Task string `json:"task,omitempty"`
	// Ignored, of Review, brings the contents of what the host's ignore rules
	// leave out, too.
	Ignored bool `json:"ignored,omitempty"`
	// Error, of the answers, is empty when all is well.
	Error string `json:"error,omitempty"`
}

// Bounds, in bytes.
const (
	// MaxSpec is the largest Spec: two lists of 4,096 patterns of 1 KiB and
	// what says where each comes from.
	MaxSpec = 24 << 20
	// MaxError is the longest error.
	MaxError = 4096

	maxTask = 64
	piece   = 32 << 10
)

// Spec is what a share process serves.
type Spec struct {
	Tag string
	// Path is the folder, absolute and without links; Dev and Ino say which one
	// was granted.
	Path     string
	Dev, Ino uint64
	// Store is the folder for what is kept of the share (package review), made
	// before; empty: nothing is kept.
	Store string
	// Owner is the user and group who own every entry, as the guest's kernel
	// sees them.
	Owner uint32
	// Rules say what the guest may do, and to which names.
	Rules rules.Options
}

// ErrMessage is returned for a message that is not one.
var ErrMessage = errors.New("bad message of a share process's control")

func bad(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrMessage, fmt.Sprintf(format, a...))
}

// brings says which kinds bring a file.
var brings = map[Kind]bool{
	VirtioFS: true, Stream: true, Device: true, Review: true,
	Configure: false, Session: false, Close: false, Ready: false, Done: false, Ended: false,
}

// decode reads one packet. withFile says whether a file came with it.
func decode(b []byte, withFile bool) (*Message, error) {
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
	if brings[m.Kind] != withFile {
		return nil, bad("%s with a file: %v", m.Kind, withFile)
	}
	return m, nil
}

// check says what is wrong with a message.
func (m *Message) check() error {
	only := Message{Kind: m.Kind}
	switch m.Kind {
	case Configure:
		only.More = m.More
	case VirtioFS, Stream, Device:
	case Session:
		only.ID, only.Task = m.ID, m.Task
	case Review:
		only.ID, only.Task, only.Ignored = m.ID, m.Task, m.Ignored
	case Close:
		only.ID = m.ID
	case Ready, Ended:
		only.Error = m.Error
	case Done:
		only.ID, only.Error = m.ID, m.Error
	default:
		return bad("the kind %.40q", m.Kind)
	}
	switch {
	case m.ID != only.ID || m.More != only.More || m.Task != only.Task || m.Ignored != only.Ignored || m.Error != only.Error || m.Kind != Configure && len(m.Piece) != 0:
		return bad("a field that %s does not have", m.Kind)
	case len(m.Piece) > piece:
		return bad("a piece of %d bytes", len(m.Piece))
	case len(m.Error) > MaxError || !utf8.ValidString(m.Error):
		return bad("an error of %d bytes", len(m.Error))
	case len(m.Task) > maxTask || !word(m.Task):
		return bad("the task %.80q", m.Task)
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

// Text is an error as a message takes it.
func Text(err error) string {
	if err == nil {
		return ""
	}
	s := err.Error()
	if len(s) > MaxError {
		s = s[:MaxError]
	}
	if !utf8.ValidString(s) {
		s = string(bytes.ToValidUTF8([]byte(s), []byte("?")))
	}
	if s == "" {
		s = "failed"
	}
	return s
}

// errLink is packet's error as one of ours.
func errLink(err error) error {
	if errors.Is(err, packet.ErrPacket) {
		return bad("%v", err)
	}
	return err
}
