package review

import (
	"bufio"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/carrel-vm/carrel/guest/share"
)

// A line of a base is
//
//	CRC WORD DEV INO SIZE MODE NLINK MTIME CTIME "PATH"
//
// with a CRC-32 (IEEE, eight hex digits) of what comes after its space, numbers
// in hex, times in nanoseconds since 1970, and the path quoted as in Go, so that
// no name can end a line.

// word says how a line counts.
type word byte

const (
	wordFirst word = 'f' // unless there is one already
	wordLater word = 'l' // once the guest is known not to have changed the entry
	wordSet   word = 's' // in place of all before
)

// maxLine is the longest line: each byte of a path may become four.
const maxLine = 4*MaxName + 256

// fact is share.Info in less room: there may be a million.
type fact struct {
	dev, ino     uint64
	size         int64
	mtime, ctime int64
	mode, nlink  uint32
}

// gone is the fact that there is nothing.
func (f fact) gone() bool { return f == fact{} }

func factOf(is *share.Info) fact {
	if is == nil {
		return fact{}
	}
	return fact{dev: is.Dev, ino: is.Ino, size: is.Size, mtime: is.Mtime.UnixNano(), ctime: is.Ctime.UnixNano(), mode: uint32(is.Mode), nlink: is.Nlink}
}

func (f fact) info() share.Info {
	return share.Info{
		Dev: f.dev, Ino: f.ino, Size: f.size, Mode: os.FileMode(f.mode), Nlink: f.nlink,
		Mtime: time.Unix(0, f.mtime), Ctime: time.Unix(0, f.ctime),
	}
}

func (f fact) same(g fact) bool {
	if f.gone() || g.gone() {
		return f == g
	}
	a, b := f.info(), g.info()
	return Unchanged(&a, &b)
}

func appendLine(b []byte, w word, path string, f fact) []byte {
	start := len(b)
	b = append(b, "00000000 "...)
	body := len(b)
	b = append(b, byte(w))
	for _, n := range []uint64{f.dev, f.ino, uint64(f.size), uint64(f.mode), uint64(f.nlink), uint64(f.mtime), uint64(f.ctime)} {
		b = append(b, ' ')
		b = strconv.AppendUint(b, n, 16)
	}
	b = append(b, ' ')
	b = strconv.AppendQuoteToASCII(b, path)
	sum := crc32.ChecksumIEEE(b[body:])
	const digits = "0123456789abcdef"
	for i := range 8 {
		b[start+i] = digits[sum>>(28-4*i)&15]
	}
	return append(b, '\n')
}

// readLines reads whole lines; n is how many bytes they have, and whole says
// that nothing comes after them. A line that is no such line is passed over: it
// was not written to its end.
func readLines(r io.Reader, take func(word, string, fact)) (n int64, whole bool, err error) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		switch {
		case err == nil:
			n += int64(len(line))
			if w, path, f, ok := parseLine(line[:len(line)-1]); ok {
				take(w, path, f)
			}
		case errors.Is(err, bufio.ErrBufferFull): // none of ours is that long
			n += int64(len(line))
		case errors.Is(err, io.EOF):
			return n, len(line) == 0, nil
		default:
			return n, false, err
		}
	}
}

func parseLine(line []byte) (w word, path string, f fact, ok bool) {
	if len(line) < len("00000000 f ") || line[8] != ' ' || line[10] != ' ' {
		return 0, "", fact{}, false
	}
	sum, err := strconv.ParseUint(string(line[:8]), 16, 32)
	if err != nil || uint32(sum) != crc32.ChecksumIEEE(line[9:]) {
		return 0, "", fact{}, false
	}
	w = word(line[9])
	rest := string(line[11:])
	var num [7]uint64
	for i := range num {
		text, after, _ := strings.Cut(rest, " ")
		if num[i], err = strconv.ParseUint(text, 16, 64); err != nil {
			return 0, "", fact{}, false
		}
		rest = after
	}
	path, err = strconv.Unquote(rest)
	if err != nil || goodName(path) != nil || w != wordFirst && w != wordLater && w != wordSet || num[3] > 1<<32-1 || num[4] > 1<<32-1 {
		return 0, "", fact{}, false
	}
	return w, path, fact{
		dev: num[0], ino: num[1], size: int64(num[2]), mode: uint32(num[3]), nlink: uint32(num[4]), mtime: int64(num[5]), ctime: int64(num[6]),
	}, true
}
