package oci

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Unpacker writes a root as WriteRoot does, somewhere else: blobs lie in dir, contents go to spool, a file that is
// empty and nobody else's. See Elsewhere.
type Unpacker func(ctx context.Context, dir string, img *Image, dst, spool *os.File, lim Limits, report func(Progress)) (Stats, error)

// Through lets WriteRoot have layers unpacked by u, so that what they hold is parsed in a process that has
// given up what it does not need. nil: in this process.
func (b *Blobs) Through(u Unpacker) *Blobs {
	return &Blobs{dir: b.dir, through: u}
}

// unpackRequest is what the other process is told.
type unpackRequest struct {
	Dir    string
	Image  *Image
	Limits Limits
}

// unpackAnswer is one line of what it says. The last one has Stats or Error.
type unpackAnswer struct {
	Progress *Progress `json:",omitempty"`
	Stats    *Stats    `json:",omitempty"`
	Error    string    `json:",omitempty"`
	Kind     int       `json:",omitempty"` // of errorKinds, counted from 1
}

// Bounds of what the two say to each other: a config's strings, escaped, and some digests; and an error's text.
const (
	maxUnpackRequest = 16 << 20
	maxUnpackAnswer  = 64 << 10
	maxErrorText     = 4 << 10
)

// errorKinds are the errors that a caller tells apart; their order is the meaning of Kind.
var errorKinds = []error{ErrNotFound, ErrDamaged, ErrMalformed, ErrTooBig, ErrDenied, ErrUnsupported}

// remoteError is an error of the other process.
type remoteError struct {
	text string
	kind error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.kind }

// Process is the other process, as Elsewhere starts it.
type Process struct {
	// Command makes it, killed when ctx ends; its program calls ServeUnpack.
	Command func(ctx context.Context) *exec.Cmd
	// Start starts it with files as its descriptors 3 and on, and holds it in what it cannot enter by itself. What
	// it returns is called when the process has ended; with an error there is none. nil: as Unix does, and in nothing.
	Start func(cmd *exec.Cmd, files ...*os.File) (ended func(), err error)
}

func (p Process) start(cmd *exec.Cmd, files ...*os.File) (ended func(), err error) {
	if p.Start != nil {
		return p.Start(cmd, files...)
	}
	cmd.ExtraFiles = files
	return func() {}, cmd.Start()
}

// Elsewhere returns an Unpacker that starts a process for each root, and tells it what to do when it is held. What it
// says is believed no more than the layers are: it is bounded, and a root is whatever was written, of a size that is
// checked.
func Elsewhere(p Process) Unpacker {
	return func(ctx context.Context, dir string, img *Image, dst, spool *os.File, lim Limits, report func(Progress)) (Stats, error) {
		req, err := json.Marshal(unpackRequest{dir, img, lim})
		if err != nil {
			return Stats{}, err
		}
		inR, inW, err := os.Pipe()
		if err != nil {
			return Stats{}, err
		}
		outR, outW, err := os.Pipe()
		if err != nil {
			return Stats{}, errors.Join(err, inR.Close(), inW.Close())
		}
		var words strings.Builder
		cmd := p.Command(ctx)
		cmd.Stderr = &capped{w: &words, left: maxErrorText}
		released, err := p.start(cmd, inR, outW, dst, spool)
		inR.Close()
		outW.Close()
		if err != nil {
			return Stats{}, errors.Join(fmt.Errorf("unpack layers: %w", err), inW.Close(), outR.Close())
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = inW.Write(req) // one that does not listen says so by its end
			inW.Close()
		}()
		stats, err := readAnswers(outR, report)
		outR.Close()
		ended := cmd.Wait()
		released()
		<-sent
		switch {
		case ctx.Err() != nil:
			return Stats{}, context.Cause(ctx)
		case err != nil && ended != nil && errors.Is(err, io.ErrUnexpectedEOF):
			return Stats{}, fmt.Errorf("unpack layers: the process for it ended without an answer: %w: %q", ended, words.String())
		case err != nil:
			return Stats{}, err
		case ended != nil:
			return Stats{}, fmt.Errorf("unpack layers: %w: %q", ended, words.String())
		}
		if fi, err := dst.Stat(); err != nil || fi.Size() != stats.ImageBytes || stats.Content < 0 || stats.Entries < 0 || stats.Unpacked < 0 {
			return Stats{}, errors.Join(err, errors.New("unpack layers: the process for it says of its work what is not so"))
		}
		return stats, nil
	}
}

// readAnswers returns what the last line says.
func readAnswers(r io.Reader, report func(Progress)) (Stats, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxUnpackAnswer)
	for lines.Scan() {
		var a unpackAnswer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			return Stats{}, fmt.Errorf("unpack layers: its answer: %w", err)
		}
		switch {
		case a.Progress != nil:
			if report != nil {
				report(Progress{Step: "unpack", Done: a.Progress.Done, Total: a.Progress.Total})
			}
		case a.Stats != nil:
			return *a.Stats, nil
		default:
			err := &remoteError{text: strings.ToValidUTF8(a.Error[:min(len(a.Error), maxErrorText)], "")}
			if a.Kind > 0 && a.Kind <= len(errorKinds) {
				err.kind = errorKinds[a.Kind-1]
			}
			return Stats{}, err
		}
	}
	if err := lines.Err(); err != nil {
		return Stats{}, fmt.Errorf("unpack layers: its answer: %w", err)
	}
	return Stats{}, io.ErrUnexpectedEOF
}

// Confinement is how the other process gives up what it does not need.
type Confinement struct {
	// Enter, which may be nil, has it enter a sandbox in its own place, where it reads its request again. It gets
	// the folder of blobs, and the request; it returns nil to a process that is within.
	Enter func(dir string, request []byte) error
	// Confine leaves it that folder, to read.
	Confine func(dir string) error
}

// Given is what the other process was started with.
type Given struct {
	Request, Answers, Root, Spool *os.File // descriptors 3, 4, 5 and 6
}

// ServeUnpack is the other process's part. Before it opens a layer it has confined itself.
func ServeUnpack(ctx context.Context, given Given, c Confinement) error {
	in, out, dst, spool := given.Request, given.Answers, given.Root, given.Spool
	answers := json.NewEncoder(out)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stats, err := func() (Stats, error) {
		raw, err := io.ReadAll(io.LimitReader(in, maxUnpackRequest+1))
		in.Close()
		if err != nil {
			return Stats{}, err
		}
		var req unpackRequest
		if len(raw) > maxUnpackRequest {
			return Stats{}, fmt.Errorf("%w: a request of more than %d bytes", ErrTooBig, maxUnpackRequest)
		}
		if err := json.Unmarshal(raw, &req); err != nil {
			return Stats{}, err
		}
		if req.Image == nil || !filepath.IsAbs(req.Dir) {
			return Stats{}, errors.New("a request without an image or its folder")
		}
		if c.Enter != nil {
			err = c.Enter(req.Dir, raw)
		}
		if err == nil {
			err = c.Confine(req.Dir)
		}
		if err != nil {
			return Stats{}, fmt.Errorf("the process that unpacks layers could not give up what it does not need: %w (carrel doctor)", err)
		}
		return Open(req.Dir).writeRoot(ctx, req.Image, dst, spoolIn(spool, req.Limits.orDefault().Content), req.Limits, func(p Progress) {
			if err := answers.Encode(unpackAnswer{Progress: &p}); err != nil {
				cancel(err) // nobody reads any more
			}
		})
	}()
	if err != nil {
		a := unpackAnswer{Error: err.Error()}
		a.Error = a.Error[:min(len(a.Error), maxErrorText)]
		for i, k := range errorKinds {
			if errors.Is(err, k) {
				a.Kind = i + 1
				break
			}
		}
		return errors.Join(answers.Encode(a), out.Close())
	}
	return errors.Join(answers.Encode(unpackAnswer{Stats: &stats}), out.Close())
}

// capped keeps the first bytes of what is written.
type capped struct {
	w    io.Writer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	k := min(len(p), c.left)
	c.left -= k
	if _, err := c.w.Write(p[:k]); err != nil {
		return 0, err
	}
	return len(p), nil
}
