package seatbelt

import (
	"debug/macho"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRunsHere knows a program of macOS by its head (mach-o/loader.h).
func TestRunsHere(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	head := func(cpu macho.Cpu, kind macho.Type) []byte {
		b := binary.LittleEndian.AppendUint32(nil, macho.Magic64)
		b = binary.LittleEndian.AppendUint32(b, uint32(cpu))
		b = binary.LittleEndian.AppendUint32(b, 0)
		b = binary.LittleEndian.AppendUint32(b, uint32(kind))
		return append(b, make([]byte, 16)...)
	}
	arm, intel := write("arm", head(macho.CpuArm64, macho.TypeExec), 0o755), write("intel", head(macho.CpuAmd64, macho.TypeExec), 0o755)
	for path, arch := range map[string]string{arm: "arm64", intel: "amd64"} {
		if err := runsHere(path, arch); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	for what, tc := range map[string]struct{ path, arch, want string }{
		"for the other":  {arm, "amd64", "another processor"},
		"a library":      {write("lib", head(macho.CpuArm64, macho.TypeDylib), 0o755), "arm64", "another processor"},
		"of Linux":       {"/proc/self/exe", "amd64", "not a program of macOS"},
		"no permission":  {write("plain", head(macho.CpuArm64, macho.TypeExec), 0o644), "arm64", "not a program"},
		"a folder":       {dir, "arm64", "not a program"},
		"missing":        {filepath.Join(dir, "none"), "arm64", "no such file"},
		"on a processor": {arm, "riscv64", "no macOS"},
	} {
		if err := runsHere(tc.path, tc.arch); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", what, err, tc.want)
		}
	}
}
