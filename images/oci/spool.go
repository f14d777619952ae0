package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// spool is the one file that holds the contents of an image while its root is made. It only grows;
// it has no name where the system lets an open file be deleted.
type spool struct {
	f    *os.File
	buf  []byte // not written yet
	end  int64  // with buf
	max  int64
	name string // "" once it has none
}

const spoolBuffer = 1 << 20

func newSpool(dir string, limit int64) (*spool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	f, err := os.CreateTemp(dir, "spool-*") // 0600
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s := spoolIn(f, limit)
	s.name = f.Name()
	if runtime.GOOS != "windows" && os.Remove(s.name) == nil {
		s.name = ""
	}
	return s, nil
}

// spoolIn is a spool in a file that is empty and that nobody else writes to.
func spoolIn(f *os.File, limit int64) *spool {
	return &spool{f: f, buf: make([]byte, 0, spoolBuffer), max: limit}
}

func (s *spool) close() {
	s.f.Close()
	if s.name != "" {
		os.Remove(s.name)
	}
}

// Write adds p at the end.
func (s *spool) Write(p []byte) (int, error) {
	if s.end+int64(len(p)) > s.max {
		return 0, fmt.Errorf("%w: more than %d bytes of contents", ErrTooBig, s.max)
	}
	for n := 0; n < len(p); {
		if len(s.buf) == cap(s.buf) {
			if err := s.flush(); err != nil {
				return n, err
			}
		}
		k := copy(s.buf[len(s.buf):cap(s.buf)], p[n:])
		s.buf = s.buf[:len(s.buf)+k]
		s.end += int64(k)
		n += k
	}
	return len(p), nil
}

func (s *spool) flush() error {
	if _, err := s.f.WriteAt(s.buf, s.end-int64(len(s.buf))); err != nil {
		return fmt.Errorf("spool %s: %w", filepath.Dir(s.f.Name()), err)
	}
	s.buf = s.buf[:0]
	return nil
}

// readAt fills p from what lies at off.
func (s *spool) readAt(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	if off+int64(len(p)) > s.end-int64(len(s.buf)) {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if _, err := s.f.ReadAt(p, off); err != nil {
		return fmt.Errorf("spool %s: %w", filepath.Dir(s.f.Name()), err)
	}
	return nil
}

func (s *spool) read(off int64, n int) ([]byte, error) {
	p := make([]byte, n)
	return p, s.readAt(p, off)
}
