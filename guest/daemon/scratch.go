package daemon

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/carrel-vm/carrel/hypervisor"
)

// makeScratch makes the guest's disk once: a sparse file with an empty ext4, so
// that it takes only the room that is used.
func makeScratch(ctx context.Context, path string, mib uint32) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	tmp := path + ".new"
	os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(int64(mib) << 20)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		mkfs, lerr := lookTool("mkfs.ext4")
		if lerr != nil {
			return &hypervisor.Error{Op: "make the guest's disk", Err: lerr, Cure: "sudo apt-get install e2fsprogs"}
		}
		var out []byte
		out, err = exec.CommandContext(ctx, mkfs, "-q", "-F", "-m", "0", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", tmp).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("mkfs.ext4: %w: %.300q", err, out)
		}
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return &hypervisor.Error{Op: "make the guest's disk", Err: err, Cure: "make room on the disk that holds " + filepath.Dir(path)}
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
