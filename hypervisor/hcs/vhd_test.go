package hcs

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

// TestFooter has the footer of a disk of 1 MiB byte by byte, but for zeros. Its
// geometry, 30 cylinders of 4 heads and 17 sectors, is what the specification's
// algorithm gives and QEMU's block/vpc.c too.
func TestFooter(t *testing.T) {
	got := fixedFooter(1<<20, [16]byte{0xaa, 0xbb})
	want, err := hex.DecodeString("636f6e6563746978" + "00000002" + "00010000" + "ffffffffffffffff" + "00000000" +
		"6372726c" + "00010000" + "5769326b" + "0000000000100000" + "0000000000100000" + "001e0411" + "00000002")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != sector || !bytes.Equal(got[:64], want) || got[68] != 0xaa || got[69] != 0xbb {
		t.Errorf("footer %x", got[:84])
	}
	var sum uint32
	for i, c := range got {
		if i < 64 || i > 67 {
			sum += uint32(c)
		}
	}
	if binary.BigEndian.Uint32(got[64:]) != ^sum {
		t.Errorf("checksum %x, want %x", got[64:68], ^sum)
	}
}

// TestGeometry has the turning points of the specification's appendix.
func TestGeometry(t *testing.T) {
	for _, tc := range []struct {
		size uint64
		want [4]byte
	}{
		{sector, [4]byte{0, 0, 4, 17}},
		{1024 * 16 * 17 * sector, [4]byte{0x02, 0x31, 16, 31}}, // heads*1024 cylinders are too many
		{8 << 30, [4]byte{0x41, 0x04, 16, 63}},
		{65535 * 16 * 63 * sector, [4]byte{0x3f, 0x3f, 16, 255}},
		{1 << 50, [4]byte{0xff, 0xff, 16, 255}},
	} {
		if got := geometry(tc.size); got != tc.want {
			t.Errorf("%d bytes: %v, want %v", tc.size, got, tc.want)
		}
	}
}

func TestVHD(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	size := func(path string) int64 {
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}
	whole := func(path string) bool {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		ok, err := isVHD(f)
		if err != nil {
			t.Error(err)
		}
		return ok
	}
	raw := bytes.Repeat([]byte("a disk. "), sector)
	disk := write("disk", raw)
	for range 2 { // the second time it is one
		if err := makeVHD(disk); err != nil {
			t.Fatal(err)
		}
		if got := size(disk); got != int64(len(raw)+sector) || !whole(disk) {
			t.Fatalf("%d bytes of %d, a disk: %t", got, len(raw)+sector, whole(disk))
		}
	}
	// A footer within a disk, that a guest wrote, is not the disk's own.
	inner := write("inner", append(append([]byte{}, raw...), fixedFooter(sector, [16]byte{})...))
	if whole(inner) {
		t.Error("a footer of another size counts")
	}
	damaged := append(append([]byte{}, raw...), fixedFooter(uint64(len(raw)), [16]byte{})...)
	damaged[len(raw)+100]++
	if whole(write("damaged", damaged)) {
		t.Error("a footer with a wrong checksum counts")
	}
	for name, b := range map[string][]byte{"empty": nil, "uneven": raw[:sector+1]} {
		path := write(name, b)
		if err := makeVHD(path); err == nil {
			t.Errorf("%s: made a disk", name)
		}
		if got := size(path); got != int64(len(b)) {
			t.Errorf("%s: it has %d bytes afterwards", name, got)
		}
	}
	// A VHDX stays as it is; what has only its name, or only its beginning, is none.
	x := append([]byte("vhdxfile"), raw...)
	if err := makeVHD(write("disk.VHDX", x)); err != nil || size(filepath.Join(dir, "disk.VHDX")) != int64(len(x)) {
		t.Errorf("a VHDX of %d bytes has %d: %v", len(x), size(filepath.Join(dir, "disk.VHDX")), err)
	}
	if err := makeVHD(write("raw.vhdx", raw)); err == nil || size(filepath.Join(dir, "raw.vhdx")) != int64(len(raw)) {
		t.Error("a raw image is taken for a VHDX")
	}
	guests := write("guests", append([]byte("vhdxfile"), raw[8:]...))
	if err := makeVHD(guests); err != nil || !whole(guests) {
		t.Errorf("a raw image that begins as a VHDX is no disk: %v", err)
	}
	// A copy is filled up to a sector, and the image stays as it is.
	image := write("image", raw[:sector+1])
	if err := copyVHD(filepath.Join(dir, "copy"), image); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "copy")); err != nil || len(got) != 3*sector || !bytes.Equal(got[:sector+1], raw[:sector+1]) {
		t.Errorf("a copy of %d bytes: %v", len(got), err)
	}
	if size(image) != sector+1 {
		t.Error("the image was changed")
	}
	if err := copyVHD(filepath.Join(dir, "copy"), image); err == nil {
		t.Error("an existing file was written over")
	}
}
