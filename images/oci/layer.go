package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// unpacker applies layers to a tree within limits that hold for all of them together.
type unpacker struct {
	tree     *tree
	lim      Limits
	unpacked int64 // bytes of tars so far
}

// begin makes ready for layer i, whose blob has size bytes.
func (u *unpacker) begin(i int, size int64) {
	u.tree.layer = uint16(i)
	u.tree.most = u.tree.spool.end + ratioFloor + size*u.lim.Ratio
}

// layer applies one layer, whose blob has been verified. The tar is hashed on its way, and what
// lies behind its end is read too, as diffID covers all of it.
func (u *unpacker) layer(ctx context.Context, blob io.Reader, diffID string, took func(int64)) error {
	blob = &metered{r: blob, ctx: ctx, took: took}
	src, err := decompress(blob)
	if err != nil {
		return err
	}
	defer src.Close()
	sum := sha256.New()
	bounded := &bounded{
		r: src, sum: sum, all: &u.unpacked, max: u.lim.Bytes,
		blob: blob.(*metered), ratio: u.lim.Ratio,
	}
	pipe := readAhead(bounded)
	defer pipe.close()
	tr := tar.NewReader(pipe)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return headerError(err)
		}
		if err := u.tree.apply(h, tr); err != nil {
			return fmt.Errorf("entry %q: %w", clip(h.Name), tarError(err))
		}
	}
	if _, err := io.Copy(io.Discard, pipe); err != nil {
		return tarError(err)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); got != diffID {
		return fmt.Errorf("its tar is %s and the config says %s: %w", got, diffID, ErrDamaged)
	}
	return nil
}

// tarError tells a malformed tar or compression from what else can fail while one is read.
func tarError(err error) error {
	var bad flate
	switch {
	case errors.Is(err, ErrMalformed), errors.Is(err, ErrTooBig):
		return err
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &bad):
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return err
}

// headerError is tarError for where nothing is done but reading headers.
func headerError(err error) error {
	if errors.Is(err, ErrTooBig) || errors.As(err, new(readError)) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrMalformed, err)
}

// flate marks an error of a decompressor.
type flate struct{ error }

func (f flate) Unwrap() error { return f.error }

// decompress tells by its first bytes what a layer is compressed with: media types are sometimes wrong, bytes are not.
func decompress(r io.Reader) (io.ReadCloser, error) {
	var head [4]byte
	n, err := io.ReadFull(r, head[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	r = io.MultiReader(bytes.NewReader(head[:n]), r)
	switch {
	case bytes.HasPrefix(head[:n], []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, tarError(flate{err})
		}
		return unpacked{z, z.Close}, nil
	case bytes.HasPrefix(head[:n], []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxWindow),
			zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, tarError(flate{err})
		}
		return unpacked{z, func() error { z.Close(); return nil }}, nil
	}
	return io.NopCloser(r), nil
}

// unpacked marks what a decompressor says, except for the end and for errors of what it reads from.
type unpacked struct {
	io.Reader
	close func() error
}

func (u unpacked) Close() error { return u.close() }

func (u unpacked) Read(p []byte) (int, error) {
	n, err := u.Reader.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // a reader's own EOF is bare
		var read readError
		if !errors.As(err, &read) {
			err = flate{err}
		}
	}
	return n, err
}

// metered reads a blob, stops when ctx ends, and tells how much was taken.
type metered struct {
	r    io.Reader
	ctx  context.Context //nolint:containedctx // of one call of layer
	n    int64
	took func(int64)
}

// readError is a failure to read the blob itself.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

func (m *metered) Read(p []byte) (int, error) {
	if m.ctx.Err() != nil {
		return 0, readError{context.Cause(m.ctx)}
	}
	n, err := m.r.Read(p)
	m.n += int64(n)
	m.took(int64(n))
	if err != nil && err != io.EOF { //nolint:errorlint // a reader's own EOF is bare
		err = readError{err}
	}
	return n, err
}

// bounded holds a layer's tar to the limits and hashes it.
type bounded struct {
	r     io.Reader
	sum   hash.Hash
	n     int64  // of this layer
	all   *int64 // of all layers
	max   int64
	blob  *metered
	ratio int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.sum.Write(p[:n])
	b.n += int64(n)
	*b.all += int64(n)
	if *b.all > b.max {
		return 0, fmt.Errorf("%w: more than %d bytes of layers", ErrTooBig, b.max)
	}
	if b.n > ratioFloor && b.n-ratioFloor > b.blob.n*b.ratio {
		return 0, fmt.Errorf("%w: %d bytes out of %d of the blob, more than %d for one", ErrTooBig, b.n, b.blob.n, b.ratio)
	}
	return n, err
}

// ahead reads on one processor what is parsed on another.
type ahead struct {
	full chan chunk
	free chan []byte
	cur  []byte
	buf  []byte
	err  error
	stop chan struct{}
	done chan struct{}
}

type chunk struct {
	b   []byte
	n   int
	err error
}

// readAhead starts to read r: at most four pieces of 256 KiB ahead. close ends it and waits.
func readAhead(r io.Reader) *ahead {
	const pieces, piece = 4, 256 << 10
	a := &ahead{full: make(chan chunk, pieces), free: make(chan []byte, pieces), stop: make(chan struct{}), done: make(chan struct{})}
	for range pieces {
		a.free <- make([]byte, piece)
	}
	go func() {
		defer close(a.done)
		for {
			var b []byte
			select {
			case b = <-a.free:
			case <-a.stop:
				return
			}
			n, err := io.ReadFull(r, b)
			if errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, new(flate)) && !errors.As(err, new(readError)) {
				err = io.EOF // of ReadFull: the last piece is short
			}
			a.full <- chunk{b, n, err}
			if err != nil {
				return
			}
		}
	}()
	return a
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.cur) == 0 {
		if a.err != nil {
			return 0, a.err
		}
		if a.buf != nil {
			a.free <- a.buf
		}
		c := <-a.full
		a.buf, a.cur, a.err = c.b, c.b[:c.n], c.err
	}
	n := copy(p, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

func (a *ahead) close() {
	close(a.stop)
	<-a.done
}
