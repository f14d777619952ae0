//go:build unix

package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/guest/wire"
)

const (
	// maxRefusals is how large the file may become, in bytes. Then the older
	// half of it is dropped.
	maxRefusals = 1 << 20
	// maxRefusal is the longest line, in bytes.
	maxRefusal = 1024
	// maxRefusedLines is how many lines one Control may bring.
	maxRefusedLines = 1024
)

// refused writes down what the host did not let out.
func (a *Agent) refused(lines []string) error {
	if a.o.Refusals == "" {
		return nil
	}
	if len(lines) > maxRefusedLines {
		return fmt.Errorf("%d refusals at once, %d is the limit", len(lines), maxRefusedLines)
	}
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(wire.Text(l, maxRefusal))
		b.WriteByte('\n')
	}
	if err := appendBounded(a.o.Refusals, b.String(), maxRefusals); err != nil {
		return fmt.Errorf("write down refusals: %w", err)
	}
	return nil
}

// appendBounded adds lines to a file of whole lines, which a link cannot stand
// for. One that would become larger than most keeps only its newer half.
func appendBounded(path, lines string, most int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err == nil && st.Size()+int64(len(lines)) > most {
		return errors.Join(renew(path, f, most/2, lines), f.Close())
	}
	if err == nil {
		_, err = f.WriteString(lines)
	}
	return errors.Join(err, f.Close())
}

// renew replaces the file at path, which is open as old, by its last bytes from
// the start of a line, and lines.
func renew(path string, old *os.File, keep int64, lines string) error {
	size, err := old.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	b := make([]byte, min(keep, size))
	if _, err := old.ReadAt(b, size-int64(len(b))); err != nil && err != io.EOF {
		return err
	}
	_, rest, _ := strings.Cut(string(b), "\n")
	return writeAtomically(path, rest+lines, 0o644)
}

// writeAtomically replaces a file as a whole, so that nobody reads half of it.
// A link at path is replaced, not followed.
func writeAtomically(path, content string, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".carrel-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
