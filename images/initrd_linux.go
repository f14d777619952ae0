package images

import (
	"bufio"
	"debug/elf"
	"fmt"
	"io"
	"os"

	"github.com/u-root/u-root/pkg/cpio"
)

// initrdVersion counts changes of the initrd's layout, so that an older image is built anew.
const initrdVersion = 1

// maxAgent bounds the agent's program; it is about 10 MB.
const maxAgent = 256 << 20

// writeInitrd writes the archive that the kernel unpacks: the agent as /init, a console for its
// first words, and the folders that it mounts on. It is newc (the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst) and uncompressed: it is 4 MB, and
// inflating would be the guest's work at each boot. The same agent gives the same bytes.
func writeInitrd(w io.Writer, agent io.ReaderAt, size int64) error {
	records := []cpio.Record{
		cpio.Directory("dev", 0o755),
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.Directory("proc", 0o555),
		cpio.Directory("sys", 0o555),
		{ReaderAt: agent, Info: cpio.Info{Name: "init", Mode: cpio.S_IFREG | 0o755, FileSize: uint64(size)}},
	}
	buf := bufio.NewWriterSize(w, 1<<20)
	rw := cpio.Newc.Writer(buf)
	for i, r := range records {
		r = cpio.MakeReproducible(r)
		r.Ino, r.NLink = uint64(i+1), 1
		if err := rw.WriteRecord(r); err != nil {
			return fmt.Errorf("initrd: %s: %w", r.Name, err)
		}
	}
	if err := cpio.WriteTrailer(rw); err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	if err := buf.Flush(); err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	return nil
}

// machines are what the header of a program says, by GOARCH.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// checkAgent refuses what cannot be PID 1 of an initrd that holds nothing else, on a processor of that architecture.
func checkAgent(f *os.File, arch string) error {
	fi, err := f.Stat()
	if err != nil {
		return fmt.Errorf("agent %s: %w", f.Name(), err)
	}
	if fi.Size() > maxAgent {
		return fmt.Errorf("agent %s: %d bytes, more than %d", f.Name(), fi.Size(), maxAgent)
	}
	e, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("agent %s is not a Linux program: %w (make %s)", f.Name(), err, makesAgent(arch))
	}
	if want := machines[arch]; e.Machine != want {
		return fmt.Errorf("agent %s is for %v, expected %v (make %s)", f.Name(), e.Machine, want, makesAgent(arch))
	}
	for _, p := range e.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("agent %s is not static, and an initrd has no libraries (CGO_ENABLED=0 go build ./cmd/carrel-agent)", f.Name())
		}
	}
	return nil
}
