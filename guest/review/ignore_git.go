package review

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Bounds of a repository's list of tracked files (.git/index).
const (
	maxGitIndex   = 64 << 20
	maxGitEntries = 1_000_000
)

// parseGitIndex calls take with the name of each tracked file, after
// gitformat-index(5), versions 2 to 4. A list that is split over two files, or
// that has folders in place of files, is an error: it does not tell all.
func parseGitIndex(b []byte, take func(name string)) error {
	if len(b) < 12+sha1.Size || string(b[:4]) != "DIRC" {
		return errors.New("it is no index of git")
	}
	version, count := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	if version < 2 || version > 4 {
		return fmt.Errorf("it has version %d", version)
	}
	if count > maxGitEntries {
		return fmt.Errorf("it has %d files", count)
	}
	id, err := gitHash(b)
	if err != nil {
		return err
	}
	rest := b[12 : len(b)-id]
	name := ""
	for range count {
		if name, rest, err = gitEntry(rest, name, version, id); err != nil {
			return err
		}
		take(name)
	}
	for len(rest) >= 8 {
		sign, size := string(rest[:4]), binary.BigEndian.Uint32(rest[4:])
		if sign[0] < 'A' || sign[0] > 'Z' { // one that may not be passed over
			return fmt.Errorf("it has an extension %.4q that is not known here", sign)
		}
		if uint64(size) > uint64(len(rest)-8) {
			return errors.New("it ends in an extension")
		}
		rest = rest[8+size:]
	}
	return nil
}

// gitHash tells by the sum at the end how long an object's name is. A sum of
// zeros is one that git was told not to make (index.skipHash).
func gitHash(b []byte) (size int, err error) {
	end := len(b) - sha1.Size
	if sum := sha1.Sum(b[:end]); bytes.Equal(sum[:], b[end:]) || bytes.Equal(b[end:], make([]byte, sha1.Size)) {
		return sha1.Size, nil
	}
	end = len(b) - sha256.Size
	if end >= 12 {
		if sum := sha256.Sum256(b[:end]); bytes.Equal(sum[:], b[end:]) {
			return sha256.Size, nil
		}
	}
	return 0, errors.New("its sum is another")
}

func gitEntry(b []byte, before string, version uint32, id int) (name string, rest []byte, err error) {
	cut := errors.New("it ends in an entry")
	fixed := 40 + id + 2 // times, numbers and size; the object; flags
	if len(b) < fixed {
		return "", nil, cut
	}
	at := fixed
	if mode := binary.BigEndian.Uint32(b[24:]); mode&0o170000 == 0o040000 {
		return "", nil, errors.New("it is sparse")
	}
	if binary.BigEndian.Uint16(b[fixed-2:])&0x4000 != 0 { // extended
		at += 2
	}
	if version == 4 {
		strip, n := gitNumber(b[min(at, len(b)):])
		if n == 0 || strip > uint64(len(before)) {
			return "", nil, cut
		}
		at += n
		before = before[:uint64(len(before))-strip]
	} else {
		before = ""
	}
	end := bytes.IndexByte(b[min(at, len(b)):], 0)
	if end < 0 || len(before)+end > MaxName {
		return "", nil, cut
	}
	name = before + string(b[at:at+end])
	at += end + 1
	if version < 4 { // entries begin at multiples of eight bytes, with a NUL at least
		at = (at + 7) &^ 7
		if at > len(b) {
			return "", nil, cut
		}
	}
	if name == "" || strings.HasSuffix(name, "/") {
		return "", nil, errors.New("it has an entry without a name")
	}
	return name, b[at:], nil
}

// gitNumber reads the variable-width number of pack files (varint.c).
func gitNumber(b []byte) (v uint64, n int) {
	for n < len(b) && n < 5 {
		c := b[n]
		if n > 0 {
			v++
		}
		v = v<<7 | uint64(c&0x7f)
		n++
		if c&0x80 == 0 {
			return v, n
		}
	}
	return 0, 0
}
