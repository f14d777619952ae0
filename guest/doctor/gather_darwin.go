package doctor

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// appleTools is where Apple's command line tools are, the only compilers and git
// that a guest behind the process wall can run: Xcode's lie outside of what it
// sees.
const appleTools = "/Library/Developer/CommandLineTools/usr/bin"

// codesignTime bounds the question for a program's signature.
const codesignTime = 30 * time.Second

// ReadMac gathers what this Mac says; the wall is the caller's, and whether the
// driver was built in. program is what would make machines. It was compiled for
// macOS and never ran there.
func ReadMac(ctx context.Context, program string, built bool) Mac {
	m := Mac{Arch: runtime.GOARCH, Built: built}
	m.Version, _ = unix.Sysctl("kern.osproductversion")
	if v, err := unix.SysctlUint32("kern.hv_support"); err == nil {
		n := int(v)
		m.HV = &n
	}
	v, err := unix.SysctlUint32("kern.hv_vmm_present")
	m.Virtual = err == nil && v == 1
	v, err = unix.SysctlUint32("sysctl.proc_translated") // not there on an Intel Mac
	m.Translated = err == nil && v == 1
	m.Signed = readSignature(ctx, program)
	for _, name := range []string{"carrel", "carreld", "carrel-agent"} {
		path := filepath.Join(filepath.Dir(program), name)
		if _, err := unix.Getxattr(path, "com.apple.quarantine", nil); err == nil {
			m.Quarantined = append(m.Quarantined, path)
		}
	}
	fi, err := os.Stat(appleTools)
	m.Tools = err == nil && fi.IsDir()
	return m
}

func readSignature(ctx context.Context, program string) Signature {
	s := Signature{Program: program}
	ctx, cancel := context.WithTimeout(ctx, codesignTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, "/usr/bin/codesign", "-d", "--entitlements", "-", "--xml", program).Output()
	var ee *exec.ExitError
	switch {
	case errors.As(err, &ee):
		s.Trouble = "codesign: " + string(ee.Stderr[:min(len(ee.Stderr), 300)])
	case err != nil:
		s.Trouble = err.Error()
	default:
		if s.Entitlements, err = Entitlements(out); err != nil {
			s.Trouble = err.Error()
		}
	}
	return s
}
