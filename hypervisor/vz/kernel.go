package vz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/carrel-vm/carrel/hypervisor"
)

// kernelHead is how much of a kernel says what it is, in bytes.
const kernelHead = 1 << 10

// CheckKernel refuses a kernel that the framework could not start, which would
// only say that something went wrong.
func CheckKernel(path, arch string) error {
	err := func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
			return errors.Join(err, fmt.Errorf("%s is not a regular file", path))
		}
		head := make([]byte, kernelHead)
		n, err := io.ReadFull(f, head)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			return err
		}
		if is := kernelArch(head[:n]); is != arch {
			return fmt.Errorf("%s is %s, and this Mac needs %s", path, kernelNames[is], kernelNames[arch])
		}
		return nil
	}()
	if err != nil {
		return &hypervisor.Error{Op: "open the guest's kernel", Err: err, Cure: "carrel image import, of an image for this Mac's processor"}
	}
	return nil
}

// compressed is what kernelArch says of an arm64 kernel that unpacks itself,
// which the framework does not let it.
const compressed = "compressed"

var kernelNames = map[string]string{
	"": "no Linux kernel", AMD64: "a bzImage for x86-64", ARM64: "an uncompressed Image for arm64", compressed: "a compressed kernel",
}

// kernelArch says for which architecture a kernel is, empty if it is none.
func kernelArch(head []byte) string {
	switch {
	// Documentation/arch/arm64/booting.rst: the magic number is at 56.
	case len(head) >= 64 && string(head[56:60]) == "ARM\x64":
		return ARM64
	// Documentation/arch/x86/boot.rst: "HdrS" at 0x202, the boot flag before it, and
	// XLF_KERNEL_64 in xloadflags at 0x236.
	case len(head) >= 0x238 && string(head[0x202:0x206]) == "HdrS" && binary.LittleEndian.Uint16(head[0x1fe:]) == 0xaa55:
		if binary.LittleEndian.Uint16(head[0x236:])&1 != 0 {
			return AMD64
		}
	// gzip, and the EFI program that unpacks it (CONFIG_EFI_ZBOOT).
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}), len(head) >= 8 && string(head[:2]) == "MZ" && string(head[4:8]) == "zimg":
		return compressed
	}
	return ""
}
