package review

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/share/rules"
)

// Request is what a daemon asks of a review process, over an inherited
// descriptor. Exactly one of the messages is set.
type Request struct {
	// Guest is the guest's name, for refs/carrel/NAME/.
	Guest string
	// Shares are the guest's shares, each with its own store, also those that
	// have nothing in it.
	Shares  []ShareRef
	Diff    *api.DiffRequest
	Apply   *api.ApplyRequest
	Discard *api.DiscardRequest
	Undo    *api.UndoRequest
	Summary *api.ReviewSummaryRequest
	// Recover asks to finish or take back what an earlier process was killed in.
	// It has no answer but the end.
	Recover *emptypb.Empty
}

// ShareRef is one share as it was granted, and where its store is.
type ShareRef struct {
	// Path is the folder on the host; Dev and Ino are what it was.
	Path     string
	Dev, Ino uint64
	// Store is the folder of the share's store. It may not exist yet.
	Store     string
	GuestPath string
	Rules     rules.Options
}

// maxRequest bounds a request, in bytes; maxAnswer bounds one answer.
const (
	maxRequest = 16 << 20
	maxAnswer  = 4 << 20
)

type request struct {
	Guest                                        string
	Shares                                       []ShareRef
	Diff, Apply, Discard, Undo, Summary, Recover json.RawMessage `json:",omitempty"`
}

// parts pairs each message of a request with its place in the JSON.
func (r *Request) parts(raw *request) []part {
	return []part{
		{&raw.Diff, r.Diff != nil, func() proto.Message { return r.Diff }, func() proto.Message { r.Diff = new(api.DiffRequest); return r.Diff }},
		{&raw.Apply, r.Apply != nil, func() proto.Message { return r.Apply }, func() proto.Message { r.Apply = new(api.ApplyRequest); return r.Apply }},
		{&raw.Discard, r.Discard != nil, func() proto.Message { return r.Discard }, func() proto.Message { r.Discard = new(api.DiscardRequest); return r.Discard }},
		{&raw.Undo, r.Undo != nil, func() proto.Message { return r.Undo }, func() proto.Message { r.Undo = new(api.UndoRequest); return r.Undo }},
		{&raw.Summary, r.Summary != nil, func() proto.Message { return r.Summary }, func() proto.Message { r.Summary = new(api.ReviewSummaryRequest); return r.Summary }},
		{&raw.Recover, r.Recover != nil, func() proto.Message { return r.Recover }, func() proto.Message { r.Recover = new(emptypb.Empty); return r.Recover }},
	}
}

type part struct {
	raw      *json.RawMessage
	set      bool
	is, make func() proto.Message
}

// WriteRequest writes r.
func WriteRequest(w io.Writer, r Request) error {
	raw := request{Guest: r.Guest, Shares: r.Shares}
	for _, p := range r.parts(&raw) {
		if !p.set {
			continue
		}
		b, err := protojson.Marshal(p.is())
		if err != nil {
			return err
		}
		*p.raw = b
	}
	return json.NewEncoder(w).Encode(raw)
}

// ReadRequest reads what WriteRequest wrote.
func ReadRequest(in io.Reader) (r Request, err error) {
	bad := func(err error) (Request, error) {
		return Request{}, fmt.Errorf("read the request: %w (carreld review is started by the daemon)", err)
	}
	var raw request
	dec := json.NewDecoder(io.LimitReader(in, maxRequest))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&raw); err != nil {
		return bad(err)
	}
	r.Guest, r.Shares = raw.Guest, raw.Shares
	n := 0
	for _, p := range r.parts(&raw) {
		if *p.raw == nil {
			continue
		}
		n++
		if err := protojson.Unmarshal(*p.raw, p.make()); err != nil {
			return bad(err)
		}
	}
	if n != 1 {
		return bad(fmt.Errorf("it asks for %d things", n))
	}
	return r, nil
}

// Error is a failure with a stable code and what would mend it.
type Error struct{ Code, Cause, Cure string }

func (e *Error) Error() string {
	if e.Cure == "" {
		return e.Cause
	}
	return e.Cause + " (" + e.Cure + ")"
}

// What stands before each answer of a review process.
const (
	answerMessage = 'm'
	answerEnd     = 'e' // an api.ErrorDetail follows; one without a code is a good end
)

// Answers writes what a review process has to say. It is for one goroutine.
type Answers struct {
	w *bufio.Writer
	// Together lets answers wait for the next ones, up to answersBuffer: where
	// they tell of nothing that has been done.
	Together bool
}

// answersBuffer is in bytes.
const answersBuffer = 32 << 10

// NewAnswers returns a writer of answers to w.
func NewAnswers(w io.Writer) *Answers { return &Answers{w: bufio.NewWriterSize(w, answersBuffer)} }

// Emit writes one answer.
func (a *Answers) Emit(m proto.Message) error {
	if n := proto.Size(m); n > maxAnswer {
		return fmt.Errorf("an answer of %d bytes; %d are possible", n, maxAnswer)
	}
	if err := a.write(answerMessage, m); err != nil || a.Together {
		return err
	}
	return a.w.Flush()
}

// End writes how it ended: err is nil, an *Error or any other.
func (a *Answers) End(err error) error {
	d := new(api.ErrorDetail)
	var own *Error
	switch {
	case errors.As(err, &own):
		d.Code, d.Cause, d.Cure = own.Code, own.Cause, own.Cure
	case err != nil:
		d.Code, d.Cause = "review_failed", err.Error()
	}
	if err := a.write(answerEnd, d); err != nil {
		return err
	}
	return a.w.Flush()
}

func (a *Answers) write(kind byte, m proto.Message) error {
	if err := a.w.WriteByte(kind); err != nil {
		return err
	}
	_, err := protodelim.MarshalTo(a.w, m)
	return err
}

// ErrTruncated says that a review process ended without saying how.
var ErrTruncated = errors.New("the review process ended without its end")

// AnswerReader is what answers are read from; bufio.Reader is one.
type AnswerReader interface {
	io.Reader
	io.ByteReader
}

// ReadAnswer reads the next answer into m. At the end, which is said and never
// inferred, it returns io.EOF, or the *Error with which the process ended.
func ReadAnswer(r AnswerReader, m proto.Message) error {
	kind, err := r.ReadByte()
	if err != nil {
		return ErrTruncated
	}
	in := protodelim.UnmarshalOptions{MaxSize: maxAnswer}
	switch kind {
	case answerMessage:
		if err := in.UnmarshalFrom(r, m); err != nil {
			return fmt.Errorf("%w: %w", ErrTruncated, err)
		}
		return nil
	case answerEnd:
		d := new(api.ErrorDetail)
		if err := in.UnmarshalFrom(r, d); err != nil {
			return fmt.Errorf("%w: %w", ErrTruncated, err)
		}
		if d.Code == "" {
			return io.EOF
		}
		return &Error{Code: d.Code, Cause: d.Cause, Cure: d.Cure}
	}
	return fmt.Errorf("%w: an answer of kind %d", ErrTruncated, kind)
}
