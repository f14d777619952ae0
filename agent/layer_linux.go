package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/agent/machine"
	"github.com/carrel-vm/carrel/guest/wire"
)

// layersDir is where on the scratch disk the layers are that outlive a stop,
// each in a folder of its name: what the guest has changed in "upper", and the
// kernel's own room beside it.
const layersDir = "layers"

// mounter mounts shares.
type mounter struct {
	// disk is the scratch disk's place or empty.
	disk string
	// lower mounts share i at a place, without any layer.
	lower func(i int, s *wire.Mount, at string) error
	// options are those of a layer, or empty where the kernel knows none.
	options string
	// memoryMiB is the guest's size, where it must be told.
	memoryMiB int
	// cover hides the places beneath lowerDir once their shares are mounted.
	cover bool
}

// room is how large a layer in memory may become, as tmpfs takes it.
func (m mounter) room() string {
	if m.memoryMiB > 0 {
		return part(m.memoryMiB, 75)
	}
	return "75%"
}

// notes is what the names of the kernel's own notes about a layer begin with.
func (m mounter) notes() string {
	if strings.Contains(m.options, "userxattr") {
		return "user.overlay."
	}
	return "trusted.overlay."
}

// flags of a share's mount, or of what lies under its layer.
func flags(s *wire.Mount) uintptr {
	if s.ReadOnly || s.Overlay {
		return fromHost | unix.MS_RDONLY
	}
	return fromHost
}

// virtioFS mounts a share that is a device.
func virtioFS(_ int, s *wire.Mount, at string) error {
	if s.Type != "virtiofs" {
		return fmt.Errorf("a share of type %.20q is unknown to this agent", s.Type)
	}
	return mnt(s.Tag, at, s.Type, flags(s), "").Do()
}

// lay mounts a share's layer over what is mounted at lower.
func (m mounter) lay(s *wire.Mount, lower, layer string) error {
	upper := layer + "/upper"
	// The merged folder's own owner and mode are the upper's. A folder of
	// somebody whom a process sandbox does not know becomes the agent's.
	var st syscall.Stat_t
	if err := syscall.Stat(lower, &st); err != nil {
		return err
	}
	if err := os.Chown(upper, int(st.Uid), int(st.Gid)); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := unix.Chmod(upper, st.Mode&0o1777); err != nil {
		return err
	}
	options := ""
	if m.options != "" {
		options = "," + m.options
	}
	merged := mnt(s.Tag, s.Path, "overlay", fromHost, "lowerdir="+lower+",upperdir="+upper+",workdir="+layer+"/work"+options)
	if s.Layer == "" || m.disk == "" {
		return merged.Do()
	}
	return withSpare(filepath.Join(m.disk, layersDir, spareName), merged.Do)
}

// spareName is a folder of empty files that the disk can do without; no layer
// has such a name.
const spareName = ".spare"

// spareFiles is how many files the kernel makes to see whether it can, before
// it mounts a layer (ovl_make_workdir, fs/overlayfs/super.c), and some more.
const spareFiles = 6

// withSpare does what needs a few files, also where the disk has no room for
// any: then it makes some.
func withSpare(dir string, do func() error) error {
	err := do()
	if full(err) && os.RemoveAll(dir) == nil {
		err = do()
	}
	if _, e := os.Lstat(filepath.Join(dir, strconv.Itoa(spareFiles))); err != nil || e == nil {
		return err
	}
	_ = os.Mkdir(dir, 0o700)
	for i := range spareFiles {
		f, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(i+1)), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			break // next time
		}
		_ = f.Close()
	}
	return nil
}

// layer makes the folder of share i's layer, or finds it as an earlier start
// has left it. Where the disk has no room for a new one, memory has to do.
func (m mounter) layer(i int, s *wire.Mount) (dir string, inMemory bool, err error) {
	if s.Layer != "" && !layerName(s.Layer) {
		return "", false, fmt.Errorf("the layer of share %s has the name %.40q, which is not of the form [0-9a-z]{1,32}", s.Tag, s.Layer)
	}
	switch {
	case m.disk == "":
	case s.Layer != "":
		dir = filepath.Join(m.disk, layersDir, s.Layer)
		is, err := os.Lstat(dir + "/upper")
		old := err == nil
		if old && !is.IsDir() {
			return "", false, fmt.Errorf("layer of share %s on the scratch disk: %s/upper is no folder", s.Tag, dir)
		}
		err = m.keptLayer(dir)
		if err == nil {
			return dir, false, nil
		}
		// Changes that are there must not seem gone.
		if old || !full(err) {
			return "", false, fmt.Errorf("layer of share %s on the scratch disk: %w", s.Tag, err)
		}
	default:
		if fresh, err := machine.FreshDir(m.disk, "share"+strconv.Itoa(i), 0o700); err == nil {
			return fresh, false, errors.Join(os.Mkdir(fresh+"/upper", 0o755), os.Mkdir(fresh+"/work", 0o755))
		}
	}
	dir = filepath.Join(upperDir, strconv.Itoa(i))
	if err := mnt("layer", dir, "tmpfs", fromHost, "mode=0700,size="+m.room()).Do(); err != nil {
		return "", false, err
	}
	return dir, true, errors.Join(os.Mkdir(dir+"/upper", 0o755), os.Mkdir(dir+"/work", 0o755))
}

// keptLayer makes what is missing of a layer on the disk. The kernel's room is
// made anew, since it refuses one in which an earlier life of the guest was cut
// off in the middle of something deep.
func (m mounter) keptLayer(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(dir+"/upper", 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	work, next := dir+"/work", dir+"/next"
	err := os.Mkdir(next, 0o755)
	switch {
	case errors.Is(err, os.ErrExist):
	case full(err):
		// The old one, if any, has to do.
		if _, err := os.Lstat(work); err == nil {
			return nil
		}
		return err
	case err != nil:
		return err
	}
	if err := m.discard(work); err != nil {
		return err
	}
	return os.Rename(next, work)
}

// discard moves a folder of the disk to where it is removed in the background.
func (m mounter) discard(path string) error {
	trash := filepath.Join(m.disk, machine.TrashName)
	if err := os.MkdirAll(trash, 0o700); err != nil {
		return err
	}
	old := filepath.Join(trash, filepath.Base(path)+"-"+strconv.FormatInt(time.Now().UnixNano(), 10))
	if err := os.Rename(path, old); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	go func() { _ = os.RemoveAll(old) }()
	return nil
}

// full says whether a file could not be made for want of room.
func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

func layerName(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != "" && len(s) <= 32
}
