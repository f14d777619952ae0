package emptydisk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// sizes are those of small and large disks, in MiB, and of disks whose last group
// is full, has one block more, or has little room.
var sizes = []int64{64, 128, 129, 257, 511, 512, 1000, 8192, 64 << 10, 2 << 20}

func options(size int64) Options {
	return Options{Size: size * mib, Reserved: min(size*mib/20, 64*mib), Journal: min(32, size/8) * mib}
}

// raw writes the file system as it is, into a sparse file.
func raw(t *testing.T, o Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o.Raw = true
	if err := Make(f, o); err != nil {
		t.Fatal(err)
	}
	return path
}

// check has the reference implementation read all of a file system.
func check(path string) error {
	tool := ""
	for _, name := range []string{"e2fsck", "/usr/sbin/e2fsck", "/sbin/e2fsck"} {
		if p, err := exec.LookPath(name); err == nil {
			tool = p
		}
	}
	if tool == "" {
		return errors.New("there is no e2fsck (Debian package e2fsprogs, scripts/setup)")
	}
	if out, err := exec.Command(tool, "-fn", path).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// TestFileSystem: e2fsck finds nothing to mend in a file system of any size, and
// does in one of which a byte is another.
func TestFileSystem(t *testing.T) {
	for _, size := range sizes {
		if testing.Short() && size > 8192 {
			continue
		}
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			path := raw(t, options(size))
			if err := check(path); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, 1)
			if _, err := f.ReadAt(b, block+0xc); err != nil { // how many blocks of the first group are free
				t.Fatal(err)
			}
			b[0] ^= 1
			if _, err := f.WriteAt(b, block+0xc); err != nil {
				t.Fatal(err)
			}
			if check(path) == nil {
				t.Error("a damaged one passes")
			}
		})
	}
}

// TestVirtualDisk: QEMU's reader of the format finds the same disk, which e2fsck
// passes, and the file takes little room.
func TestVirtualDisk(t *testing.T) {
	for _, size := range sizes {
		if testing.Short() && size > 8192 {
			continue
		}
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dir := t.TempDir()
			f, err := os.Create(filepath.Join(dir, "disk.vhdx"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			o := options(size)
			if err := Make(f, o); err != nil {
				t.Fatal(err)
			}
			if got, err := Size(f); got != o.Size || err != nil {
				t.Errorf("it has %d bytes of %d: %v", got, o.Size, err)
			}
			fi, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d MiB take %d KiB", size, fi.Size()>>10)
			if size <= 8192 && fi.Size() > 16*mib {
				t.Errorf("an empty disk takes %d bytes", fi.Size())
			}
			at := filepath.Join(dir, "shown")
			if err := os.WriteFile(at, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			show(t, f.Name(), at)
			if fi, err := os.Stat(at); err != nil || fi.Size() != o.Size {
				t.Fatalf("QEMU shows %v: %v", fi, err)
			}
			if err := check(at); err != nil {
				t.Error(err)
			}
		})
	}
}

// show has QEMU show a VHDX as a file of its disk's bytes, until the test ends.
func show(t *testing.T, disk, at string) {
	t.Helper()
	cmd := exec.Command("qemu-storage-daemon", "--blockdev", "driver=file,node-name=f,read-only=on,filename="+disk,
		"--blockdev", "driver=vhdx,node-name=d,read-only=on,file=f", "--export", "type=fuse,id=e,node-name=d,mountpoint="+at,
		"--chardev", "stdio,id=c", "--monitor", "chardev=c")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatalf("qemu-storage-daemon (Debian package qemu-system-common, scripts/setup): %v", err)
	}
	t.Cleanup(func() {
		io.WriteString(in, `{"execute":"quit"}`)
		in.Close()
		io.Copy(io.Discard, out)
		cmd.Wait()
	})
	io.WriteString(in, `{"execute":"qmp_capabilities"}`+"\n")
	b := make([]byte, 4096) // its greeting, once the export is there
	if n, err := out.Read(b); n == 0 {
		cmd.Wait()
		t.Fatalf("qemu-storage-daemon: %v: %s", err, said.String())
	}
}
