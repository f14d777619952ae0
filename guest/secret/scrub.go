package secret

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"strings"
)

// maxScrubbed is the longest value that is looked for in answers, in bytes. The
// table of a longer one would be large, and no token is that long.
const maxScrubbed = 4 << 10

// errPacked is why an answer was not let in.
var errPacked = errors.New("the server's answer is packed in a way that was not asked for, so the secret could not be kept out of it")

// Unpacked makes the request ask for an answer that Incoming can read. It is
// called after Outgoing, for a request that has a secret.
func (e *Edge) Unpacked(r *http.Request) {
	want := "identity"
	if r.Method != http.MethodHead && r.Header.Get("Range") == "" && strings.Contains(strings.ToLower(r.Header.Get("Accept-Encoding")), "gzip") {
		want = "gzip"
	}
	r.Header.Set("Accept-Encoding", want)
}

// Incoming takes the values out of an answer to a request that had a secret:
// out of its headers, its trailers and, as it streams through, its body, in
// every form and also across the borders of pieces. What is taken out is
// replaced by as many asterisks. It is for servers that repeat what they were
// sent; one that wants to give the credential away has other means.
func (e *Edge) Incoming(res *http.Response) error {
	if e == nil || e.values == nil {
		return nil
	}
	e.hide(res.Header)
	if res.Body == nil || res.Body == http.NoBody || res.StatusCode == http.StatusSwitchingProtocols {
		return nil
	}
	switch enc := strings.ToLower(res.Header.Get("Content-Encoding")); {
	case enc == "" || enc == "identity":
	case res.Request != nil && res.Request.Method == http.MethodHead || res.ContentLength == 0 || res.StatusCode == http.StatusNotModified || res.StatusCode == http.StatusNoContent:
		return nil
	case (enc == "gzip" || enc == "x-gzip") && res.StatusCode != http.StatusPartialContent:
		res.Body = &unpacked{packed: res.Body}
		res.Header.Del("Content-Encoding")
		res.Header.Del("Content-Length")
		res.ContentLength = -1
	default:
		return errPacked
	}
	res.Body = &scrubber{src: res.Body, m: e.values, done: func() { e.hide(res.Trailer) }}
	return nil
}

func (e *Edge) hide(h http.Header) {
	for _, values := range h {
		for i, v := range values {
			b := []byte(v)
			hidden := false
			state := int32(0)
			for j, c := range b {
				state = e.values.step(state, c)
				if l := int(e.values.length[state]); l > 0 {
					stars(b[j+1-l : j+1])
					hidden = true
				}
			}
			if hidden {
				values[i] = string(b)
			}
		}
	}
}

func stars(b []byte) {
	for i := range b {
		b[i] = '*'
	}
}

// unpacked is what a gzip body holds. Its header is read with the first byte,
// so that an answer that comes slowly is not waited for here.
type unpacked struct {
	packed io.ReadCloser
	r      *gzip.Reader
}

func (u *unpacked) Read(p []byte) (n int, err error) {
	if u.r == nil {
		if u.r, err = gzip.NewReader(u.packed); err != nil {
			u.r = nil
			return 0, err
		}
	}
	return u.r.Read(p)
}

func (u *unpacked) Close() error { return u.packed.Close() }

// scrubber holds back only what may be the beginning of a value: nothing, at
// the end of a line.
type scrubber struct {
	src   io.ReadCloser
	m     *matcher
	done  func()
	buf   []byte // read; the first ready bytes may go
	ready int
	state int32
	err   error
}

func (s *scrubber) Read(p []byte) (int, error) {
	for s.ready == 0 && s.err == nil {
		if len(p) == 0 {
			return 0, nil
		}
		old := len(s.buf)
		s.buf = append(s.buf, make([]byte, min(max(len(p), 512), 32<<10))...)
		n, err := s.src.Read(s.buf[old:])
		s.buf = s.buf[:old+n]
		for i := old; i < len(s.buf); i++ {
			s.state = s.m.step(s.state, s.buf[i])
			if l := int(s.m.length[s.state]); l > 0 {
				stars(s.buf[i+1-l : i+1])
			}
		}
		s.ready = len(s.buf) - int(s.m.depth[s.state])
		if s.err = err; err != nil {
			s.ready = len(s.buf)
			if s.done != nil {
				s.done()
				s.done = nil
			}
		}
	}
	n := copy(p, s.buf[:s.ready])
	s.buf = append(s.buf[:0], s.buf[n:]...)
	s.ready -= n
	if s.ready == 0 && len(s.buf) == 0 {
		return n, s.err
	}
	return n, nil
}

func (s *scrubber) Close() error { return s.src.Close() }
