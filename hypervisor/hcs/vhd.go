package hcs

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// HCS attaches virtual disks only, and a raw image is one but for its last
// sector: a fixed VHD is the disk's bytes and a footer of 512 bytes ("Virtual
// Hard Disk Image Format Specification" 1.0, Microsoft, 2006). hcsshim's
// tar2ext4 can append one, but its package brings a tracing library along.

// sector is the unit of a VHD, in bytes.
const sector = 512

// maxVHD is the largest disk that the format has, in bytes: 2,040 GiB.
const maxVHD = 2040 << 30

// footer is a fixed disk's, big endian.
type footer struct {
	Cookie       [8]byte
	Features     uint32
	Version      uint32
	DataOffset   uint64
	TimeStamp    uint32
	Creator      [4]byte
	CreatorVer   uint32
	CreatorHost  [4]byte
	OriginalSize uint64
	CurrentSize  uint64
	Geometry     [4]byte
	DiskType     uint32
	Checksum     uint32
	ID           [16]byte
	Saved        uint8
	Reserved     [427]uint8
}

func fixedFooter(size uint64, id [16]byte) []byte {
	f := footer{
		Features: 2, Version: 1 << 16, DataOffset: 1<<64 - 1, CreatorVer: 1 << 16,
		OriginalSize: size, CurrentSize: size, Geometry: geometry(size), DiskType: 2, ID: id,
	}
	copy(f.Cookie[:], "conectix")
	copy(f.Creator[:], "crrl")
	copy(f.CreatorHost[:], "Wi2k")
	f.Checksum = checksum(f.bytes())
	return f.bytes()
}

func (f *footer) bytes() []byte {
	b, err := binary.Append(nil, binary.BigEndian, f)
	if err != nil {
		panic(err) // it has a fixed size
	}
	return b
}

// checksumAt is where it stands in a footer.
const checksumAt = 64

// checksum is the complement of the sum of all bytes, its own taken as zero.
func checksum(b []byte) uint32 {
	var sum uint32
	for i, c := range b {
		if i < checksumAt || i >= checksumAt+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// geometry is cylinders, heads and sectors by the specification's appendix.
// Nothing reads disks by them any more, and some readers check them.
func geometry(size uint64) [4]byte {
	total := min(size/sector, 65535*16*255)
	var cylinders, heads, perTrack uint64
	if total >= 65535*16*63 {
		perTrack, heads = 255, 16
		cylinders = total / perTrack / heads
	} else {
		perTrack = 17
		rest := total / perTrack
		heads = max((rest+1023)/1024, 4)
		if rest >= heads*1024 || heads > 16 {
			perTrack, heads = 31, 16
			rest = total / perTrack
		}
		if rest >= heads*1024 {
			perTrack, heads = 63, 16
			rest = total / perTrack
		}
		cylinders = rest / heads
	}
	return [4]byte{byte(cylinders >> 8), byte(cylinders), byte(heads), byte(perTrack)}
}

// isVHD says whether the file is a fixed VHD whose footer fits it. The disk's last
// bytes may be a guest's: the footer counts only where the file is a sector longer
// than it says.
func isVHD(f *os.File) (bool, error) {
	fi, err := f.Stat()
	if err != nil {
		return false, err
	}
	if fi.Size() < 2*sector {
		return false, nil
	}
	b := make([]byte, sector)
	if _, err := f.ReadAt(b, fi.Size()-sector); err != nil {
		return false, err
	}
	size := uint64(fi.Size() - sector)
	if !bytes.HasPrefix(b, []byte("conectix")) || binary.BigEndian.Uint32(b[checksumAt:]) != checksum(b) {
		return false, nil
	}
	return binary.BigEndian.Uint32(b[60:]) == 2 && binary.BigEndian.Uint64(b[48:]) == size, nil
}

// finish appends the footer to a disk's bytes.
func finish(f *os.File) error {
	size, err := f.Seek(0, io.SeekEnd)
	switch {
	case err != nil:
		return err
	case size == 0 || size%sector != 0:
		return fmt.Errorf("%s has %d bytes, which is no number of sectors of %d", f.Name(), size, sector)
	case size > maxVHD:
		return fmt.Errorf("%s has %d bytes; a VHD holds %d at most", f.Name(), size, int64(maxVHD))
	}
	var id [16]byte
	rand.Read(id[:]) // it does not fail
	if _, err := f.Write(fixedFooter(uint64(size), id)); err != nil {
		// Half a footer would be taken for a part of the disk.
		return errors.Join(err, f.Truncate(size))
	}
	return nil
}

// isVHDX says whether the file is a VHDX, which is how disks are made on Windows.
// A raw image may begin as one, as its guest likes: Windows tells the two by the
// file's name, and so it is done here.
func isVHDX(f *os.File) (bool, error) {
	if !strings.EqualFold(filepath.Ext(f.Name()), ".vhdx") {
		return false, nil
	}
	b := make([]byte, 8)
	if _, err := io.ReadFull(f, b); err != nil {
		return false, err
	}
	if string(b) != "vhdxfile" {
		return false, fmt.Errorf("%s is no VHDX, as its name says", f.Name())
	}
	return true, nil
}

// makeVHD makes a raw image a VHD where it lies; a virtual disk stays as it is.
// Who reads the raw image finds a sector more at its end.
func makeVHD(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if done, err := isVHDX(f); done || err != nil {
		return err
	}
	if done, err := isVHD(f); done || err != nil {
		return err
	}
	return errors.Join(finish(f), f.Close())
}

// copyVHD makes a VHD at path of a raw image that must stay as it is.
func copyVHD(path, image string) (err error) {
	in, err := os.Open(image)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, out.Close())
		if err != nil {
			os.Remove(path)
		}
	}()
	n, err := io.Copy(out, in)
	if err != nil {
		return err
	}
	// An image ends where its last block does.
	if over := n % sector; over != 0 {
		if err := out.Truncate(n + sector - over); err != nil {
			return err
		}
	}
	return finish(out)
}
