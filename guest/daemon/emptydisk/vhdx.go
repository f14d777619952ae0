package emptydisk

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"time"

	"github.com/Microsoft/go-winio/pkg/guid"
)

// A VHDX, at multiples of 1 MiB: heads, the log (empty), what the disk is, where
// each of its blocks lies, and those blocks that are there.
const (
	mib        = 1 << 20
	logAt      = 1 * mib
	metadataAt = 2 * mib
	batAt      = 3 * mib
	// A block of 1 MiB is the least that there is: what a guest writes takes few
	// of them, as the file system has its own records together (Microsoft, "Best
	// practices for running Linux on Hyper-V").
	blockSize = mib
	// chunk is after how many entries for blocks there is one for a bitmap, which
	// only a disk with a parent has.
	chunk = 1 << 23 * 512 / blockSize
	// MaxSize is the largest disk, in bytes. The format has 64 TiB; the sizes of
	// our guests' disks are counted in 32 bits of MiB.
	MaxSize = 16 << 40
)

// Parts of the format that are known by their GUIDs.
var (
	isBAT        = named("2dc27766-f623-4200-9d64-115e9bfd4a08")
	isMetadata   = named("8b7ca206-4790-4b9a-b8fe-575f050f886e")
	isParameters = named("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
	isSize       = named("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
	isID         = named("beca12ab-b2e6-4523-93ef-c309e000c746")
	isLogical    = named("8141bf1d-a96f-4709-ba47-f233a8faab5f")
	isPhysical   = named("cda348c7-445d-4471-9cc9-e9885251c556")
)

func named(text string) [16]byte {
	g, err := guid.FromString(text)
	if err != nil {
		panic(err) // it is one of those above
	}
	return g.ToWindowsArray()
}

func random() (b [16]byte) {
	rand.Read(b[:]) // it does not fail
	return b
}

// Options of a disk, in bytes.
type Options struct {
	Size     int64
	Reserved int64 // of its file system, for the guest's root alone
	Journal  int64
	// Raw: the disk's bytes as they are, in a sparse file, and no virtual disk.
	Raw bool
}

// Make writes an empty disk into an empty file.
func Make(f *os.File, o Options) error {
	if o.Size < 32*mib || o.Size > MaxSize || o.Size%mib != 0 || o.Journal < 4*mib || o.Journal > 128*mib || o.Journal > o.Size/4 {
		return fmt.Errorf("no disk can be made of %d bytes with a journal of %d", o.Size, o.Journal)
	}
	pieces := makeExt4(o.Size, o.Reserved, o.Journal, random(), random(), time.Now())
	if !o.Raw {
		return writeVHDX(f, o.Size, pieces)
	}
	return errors.Join(f.Truncate(o.Size), write(f, pieces))
}

func write(f *os.File, pieces []piece) error {
	for _, p := range pieces {
		if _, err := f.WriteAt(p.b, p.at); err != nil {
			return err
		}
	}
	return nil
}

func writeVHDX(f *os.File, size int64, pieces []piece) error {
	blocks := size / blockSize
	bat := make([]byte, (8*(blocks+(blocks-1)/chunk)+mib-1)/mib*mib)
	end := int64(batAt + len(bat))
	for _, p := range pieces {
		for at, b := p.at, p.b; len(b) > 0; {
			n := at / blockSize
			entry := bat[8*(n+n/chunk):]
			if le.Uint64(entry) == 0 {
				le.PutUint64(entry, uint64(end)|6) // it is there, whole
				end += blockSize
			}
			some := b[:min(int64(len(b)), (n+1)*blockSize-at)]
			if _, err := f.WriteAt(some, int64(le.Uint64(entry)&^(mib-1))+at%blockSize); err != nil {
				return err
			}
			at, b = at+int64(len(some)), b[len(some):]
		}
	}
	if err := f.Truncate(end); err != nil {
		return err
	}
	return write(f, append(heads(int64(len(bat))), piece{metadataAt, metadata(size)}, piece{batAt, bat}))
}

// heads are those of the file, each twice, so that one can be written anew.
func heads(bat int64) (all []piece) {
	identifier := append([]byte("vhdxfile"), bytes.Join([][]byte{[]byte("c"), []byte("a"), []byte("r"), []byte("r"), []byte("e"), []byte("l"), nil}, []byte{0})...)
	all = append(all, piece{0, identifier})
	written, data := random(), random()
	for i := range int64(2) {
		h := make([]byte, 4096)
		copy(h, "head")
		le.PutUint64(h[8:], uint64(1+i)) // the later one counts
		copy(h[16:], written[:])
		copy(h[32:], data[:])
		// No GUID of a log: there is nothing in it.
		le.PutUint16(h[66:], 1) // version of the format
		le.PutUint32(h[68:], mib)
		le.PutUint64(h[72:], logAt)
		le.PutUint32(h[4:], crc32.Checksum(h, castagnoli))
		all = append(all, piece{(1 + i) * 64 << 10, h})
	}
	regions := make([]byte, 64<<10)
	copy(regions, "regi")
	le.PutUint32(regions[8:], 2)
	for i, r := range []struct {
		is         [16]byte
		at, length int64
	}{{isBAT, batAt, bat}, {isMetadata, metadataAt, mib}} {
		b := regions[16+32*i:]
		copy(b, r.is[:])
		le.PutUint64(b[16:], uint64(r.at))
		le.PutUint32(b[24:], uint32(r.length))
		le.PutUint32(b[28:], 1) // who does not know it must not open the file
	}
	le.PutUint32(regions[4:], crc32.Checksum(regions, castagnoli))
	return append(all, piece{192 << 10, regions}, piece{256 << 10, regions})
}

// metadata says what the disk is.
func metadata(size int64) []byte {
	const disk, required = 2, 4
	id := random()
	b := make([]byte, 64<<10)
	copy(b, "metadata")
	for i, item := range []struct {
		is    [16]byte
		flags uint32
		value []byte
	}{
		{isParameters, required, le.AppendUint64(nil, blockSize)}, // blocks may be missing, and there is no parent
		{isSize, required | disk, le.AppendUint64(nil, uint64(size))},
		{isID, required | disk, id[:]},
		{isLogical, required | disk, le.AppendUint32(nil, 512)},
		{isPhysical, required | disk, le.AppendUint32(nil, 4096)},
	} {
		le.PutUint16(b[10:], uint16(i+1))
		e := b[32+32*i:]
		copy(e, item.is[:])
		le.PutUint32(e[16:], uint32(len(b)))
		le.PutUint32(e[20:], uint32(len(item.value)))
		le.PutUint32(e[24:], item.flags)
		b = append(b, item.value...)
	}
	return b
}

// Size is how many bytes a disk has for its guest. Only Make's layout is read,
// which Windows leaves as it is.
func Size(f io.ReaderAt) (int64, error) {
	b := make([]byte, 64<<10+mib/16)
	if n, err := f.ReadAt(b, metadataAt); n < len(b) {
		return 0, err
	}
	if !bytes.HasPrefix(b, []byte("metadata")) {
		return 0, errors.New("it is no virtual disk of Carrel's")
	}
	for i := range int(min(le.Uint16(b[10:]), 16)) {
		e := b[32+32*i:]
		if at := int(le.Uint32(e[16:])); bytes.Equal(e[:16], isSize[:]) && at <= len(b)-8 {
			if size := int64(le.Uint64(b[at:])); size > 0 && size <= MaxSize {
				return size, nil
			}
		}
	}
	return 0, errors.New("the virtual disk does not say how large it is")
}
