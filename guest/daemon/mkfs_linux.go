package daemon

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/carrel-vm/carrel/hypervisor"
)

// mkfsOptions make an empty file system of mib MiB that takes little room and no
// time to speak of in the guest. The name of a template ends in their version.
func mkfsOptions(mib uint32) []string {
	return []string{"-q", "-F", "-m", fmt.Sprintf("%.4f", reserved(mib)), "-O", "^resize_inode", "-J", fmt.Sprintf("size=%d", journalMiB(mib)),
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0"}
}

// makeDisk makes of an empty file a disk with an empty file system.
func makeDisk(ctx context.Context, f *os.File, mib uint32) error {
	if err := f.Truncate(int64(mib) << 20); err != nil {
		return err
	}
	program, err := lookTool("mkfs.ext4")
	if err != nil {
		return &hypervisor.Error{Op: "make the guest's disk", Err: err, Cure: "sudo apt-get install e2fsprogs"}
	}
	out, err := exec.CommandContext(ctx, program, append(mkfsOptions(mib), f.Name())...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %.300q", err, out)
	}
	return nil
}

// lookTool finds a system tool that an ordinary user's PATH may lack.
func lookTool(name string) (string, error) {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return exec.LookPath(name)
}
