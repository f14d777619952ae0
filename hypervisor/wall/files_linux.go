package wall

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

// AsRoot says whether this process may map a range of users, mount images and
// map owners. What another user's process can do is less.
func AsRoot() bool { return os.Geteuid() == 0 }

// IDRange is how many users and groups a guest has.
const IDRange = 1 << 16

// TaskID is the user and group that a guest's tasks run as.
const TaskID = 1000

// BaseID is the host's number for a guest's user 0: a range of its own above
// those that systemd gives to containers (systemd.io/UIDS-GIDS: up to
// 0x6fffffff) and below the signed limit. Two guests of 4,096 that share one
// still do not see each other.
func BaseID(dir string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(dir))
	return 0x70000000 + h.Sum32()%4096*IDRange
}

// MapRange starts a process as root of a new user namespace whose users are
// the host's from base on.
func MapRange(a *syscall.SysProcAttr, base int) {
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: IDRange}}
	a.Cloneflags |= syscall.CLONE_NEWUSER
	a.UidMappings, a.GidMappings, a.GidMappingsEnableSetgroups = m, m, true
	a.Credential = &syscall.Credential{Uid: 0, Gid: 0}
}

// Files are the files of the host that a guest is made from, each opened once.
type Files struct {
	// Base is the host's number for the guest's user 0, or 0 where there is
	// one user.
	Base uint32
	// RootMakes says that the guest's root may make files in shares, which then
	// belong to its own number: gVisor's gofer makes every file as root, and
	// then gives it to whom it belongs.
	RootMakes bool
	// Notes say what does not hold, a sentence each.
	Notes []string
	// Agent is the program; Image, Tree and Changes are nil unless the Spec
	// names them.
	Agent, Image, Tree, Changes *os.File
	// Shares are the folders, in the Spec's order; nil for one that is not
	// bound.
	Shares []*os.File

	spec *Spec
}

// OpenFiles opens them all in the calling thread's mount namespace, which for
// a guest with a range of users becomes a private one first. The caller closes
// them.
func OpenFiles(spec *Spec) (_ *Files, err error) {
	s := &Files{spec: spec}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if spec.Ranged {
		s.Base = BaseID(spec.Dir)
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err != nil {
			return nil, &hypervisor.Error{Op: "make a mount namespace", Err: err, Cure: "as root, Carrel needs CAP_SYS_ADMIN, which a container may lack: run it as an ordinary user"}
		}
	}
	if s.Agent, err = openPath(spec.Agent, 0); err != nil {
		return nil, &hypervisor.Error{Op: "open the agent", Err: err, Cure: "make build"}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(s.Agent.Fd()), &st); err != nil {
		return nil, err
	}
	if spec.Ranged && st.Mode&0o005 != 0o005 { // the guest's root is nobody here
		return nil, &hypervisor.Error{Op: "open the agent", Err: fmt.Errorf("%s has mode %#o; everybody must be able to run it", spec.Agent, st.Mode&0o777), Cure: "chmod a+rx " + spec.Agent}
	}
	if spec.Image != "" {
		s.Image, err = openPath(spec.Image, 0)
	} else if spec.Tree != "" {
		s.Tree, err = openPath(spec.Tree, unix.O_DIRECTORY)
	}
	if err != nil {
		return nil, &hypervisor.Error{Op: "open the guest's image", Err: err, Cure: "carrel image build, or make image"}
	}
	if spec.Changes != "" {
		if err := os.Mkdir(spec.Changes, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		if s.Changes, err = openPath(spec.Changes, unix.O_DIRECTORY); err != nil {
			return nil, err
		}
		if spec.Ranged {
			if err := unix.Fchownat(int(s.Changes.Fd()), "", int(s.Base), int(s.Base), unix.AT_EMPTY_PATH); err != nil {
				return nil, err
			}
		}
	}
	for _, sh := range spec.Shares {
		if sh.By != ByBind {
			s.Shares = append(s.Shares, nil)
			continue
		}
		f, err := openPath(sh.Path, unix.O_DIRECTORY)
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", sh.Path, err)
		}
		s.Shares = append(s.Shares, f)
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return nil, fmt.Errorf("share %s: %w", sh.Path, err)
		}
		if st.Dev != sh.Dev || st.Ino != sh.Ino {
			return nil, fmt.Errorf("share %s: the folder was replaced by another while the guest started (choose it again)", sh.Path)
		}
	}
	return s, nil
}

// openPath opens a path no part of which is a link.
func openPath(path string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC | flags, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Close closes them all.
func (s *Files) Close() {
	for _, f := range append([]*os.File{s.Agent, s.Tree, s.Changes, s.Image}, s.Shares...) { // some are nil
		if f != nil {
			f.Close()
		}
	}
}

// Quiet are the attributes of a mount that gives no rights and no devices.
const Quiet = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// StageDir is where Stage puts mounts, in the private mount namespace: a
// folder that is everywhere and whose parents everybody may enter.
const StageDir = "/tmp"

// Stage mounts agent, image or tree, changes and shares where the sandbox's
// program finds them, and returns where each is. Where there is a range of
// users owners are mapped, and pid is a process in the guest's user namespace.
// image are attributes of the image's mount beside that it is read-only.
func (s *Files) Stage(pid int, image uint64) (map[*os.File]string, error) {
	if err := unix.Mount("stage", StageDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=64m"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs: %w", err)
	}
	guest, at := -1, map[*os.File]string{}
	var err error
	if s.spec.Ranged {
		guest, err = unix.Open(fmt.Sprintf("/proc/%d/ns/user", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open the guest's user namespace: %w", err)
		}
		defer unix.Close(guest)
	}
	if at[s.Agent], err = attach(s.Agent, "agent", Quiet|unix.MOUNT_ATTR_RDONLY, -1); err != nil {
		return nil, fmt.Errorf("mount the agent: %w", err)
	}
	if s.Image != nil {
		if at[s.Image], err = mountImage(s.Image, image, guest); err != nil {
			return nil, fmt.Errorf("mount the image %s: %w", s.Image.Name(), err)
		}
	}
	if s.Tree != nil {
		if at[s.Tree], err = attach(s.Tree, "tree", image|unix.MOUNT_ATTR_RDONLY, guest); err != nil {
			if guest >= 0 && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)) {
				err = fmt.Errorf("%w (its file system cannot map owners: keep Carrel's cache on ext4, xfs or btrfs, or run as an ordinary user)", err)
			}
			return nil, fmt.Errorf("mount the image %s: %w", s.Tree.Name(), err)
		}
	}
	if s.Changes != nil {
		if at[s.Changes], err = attach(s.Changes, "changes", Quiet, -1); err != nil {
			return nil, err
		}
	}
	owners := ownerMaps{base: int(s.Base), root: s.RootMakes, known: map[[2]uint32]int{}}
	defer owners.close()
	for i, f := range s.Shares {
		if f == nil {
			continue
		}
		attr := uint64(Quiet)
		if !s.spec.Shares[i].Writable {
			attr |= unix.MOUNT_ATTR_RDONLY
		}
		ns := -1
		if s.spec.Ranged {
			if ns, err = owners.namespace(f); err != nil {
				return nil, fmt.Errorf("share %s: %w", f.Name(), err)
			}
		}
		name := "share" + strconv.Itoa(i)
		at[f], err = attach(f, name, attr, ns)
		if ns >= 0 && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)) {
			// A file system that cannot map owners (FUSE, NFS, ...).
			s.Notes = append(s.Notes, fmt.Sprintf("share %s: its file system cannot map owners, so the guest may do there what other users of this machine may", f.Name()))
			at[f], err = attach(f, name, attr, -1)
		}
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", f.Name(), err)
		}
	}
	return at, nil
}

// mountImage mounts an EROFS image, its users those of the guest.
func mountImage(image *os.File, attr uint64, userns int) (string, error) {
	fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("the kernel has no EROFS: %w (modprobe erofs)", err)
	}
	defer unix.Close(fs)
	source := fmt.Sprintf("/proc/self/fd/%d", image.Fd())
	err = unix.FsconfigSetString(fs, "source", source)
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if errors.Is(err, unix.ENOTBLK) || errors.Is(err, unix.EINVAL) {
		// Before Linux 6.12 it takes a block device.
		return "", fmt.Errorf("%w (Linux 6.12 mounts image files; on older kernels run Carrel as an ordinary user)", err)
	}
	if err != nil {
		return "", err
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(m)
	return move(m, "image", attr|unix.MOUNT_ATTR_RDONLY, userns)
}

// attach makes a mount of a folder's or file's own.
func attach(f *os.File, name string, attr uint64, userns int) (string, error) {
	m, err := unix.OpenTree(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(m)
	return move(m, name, attr, userns)
}

// move sets a mount's attributes and puts it into the stage. userns -1 leaves
// owners as they are.
func move(m int, name string, attr uint64, userns int) (string, error) {
	a := unix.MountAttr{Attr_set: attr}
	if userns >= 0 {
		a.Attr_set |= unix.MOUNT_ATTR_IDMAP
		a.Userns_fd = uint64(userns)
	}
	if err := unix.MountSetattr(m, "", unix.AT_EMPTY_PATH, &a); err != nil {
		return "", fmt.Errorf("mount_setattr: %w", err)
	}
	path := filepath.Join(StageDir, name)
	var st unix.Stat_t
	err := unix.Fstat(m, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(path, 0o755)
	} else if err == nil {
		err = os.WriteFile(path, nil, 0o644)
	}
	if err != nil {
		return "", err
	}
	if err := unix.MoveMount(m, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", fmt.Errorf("move_mount: %w", err)
	}
	return path, nil
}

// ownerMaps are user namespaces that map the owner of a share's folder to the
// user of the guest's tasks: what the owner may, a task may, and what a task
// makes is the owner's. Nobody runs in them.
type ownerMaps struct {
	base  int
	root  bool // as RootMakes
	known map[[2]uint32]int
}

func (o *ownerMaps) namespace(f *os.File) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return -1, err
	}
	key := [2]uint32{st.Uid, st.Gid}
	if fd, ok := o.known[key]; ok {
		return fd, nil
	}
	ids := func(owner uint32) []syscall.SysProcIDMap {
		m := []syscall.SysProcIDMap{{ContainerID: int(owner), HostID: o.base + TaskID, Size: 1}}
		if o.root && int(owner) != o.base {
			m = append(m, syscall.SysProcIDMap{ContainerID: o.base, HostID: o.base, Size: 1})
		}
		return m
	}
	cmd, err := holder(ids(st.Uid), ids(st.Gid))
	if err != nil {
		return -1, fmt.Errorf("map owners: %w", err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("map owners: %w", err)
	}
	o.known[key] = fd
	return fd, nil
}

// holder starts a process in a new user namespace, which needs one to be made
// by. It is stopped before its first instruction; the caller kills it and waits.
func holder(users, groups []syscall.SysProcIDMap) (*exec.Cmd, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env, cmd.Dir = []string{}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWUSER, UidMappings: users, GidMappings: groups,
		// The kernel stops what is traced when it becomes another program.
		Ptrace: true,
	}
	return cmd, cmd.Start()
}

// Holder starts a process in a user namespace like that of a guest with a range
// of users: for Stage, where the guest's own is not there yet. The caller kills
// it and waits.
func Holder(base uint32) (*exec.Cmd, error) {
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: IDRange}}
	return holder(m, m)
}

func (o *ownerMaps) close() {
	for _, fd := range o.known {
		unix.Close(fd)
	}
}
