package bubblewrap

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/hypervisor"
)

func ptr[T any](p *T) unsafe.Pointer { return unsafe.Pointer(p) }

// asRoot says whether this process may map a range of users, mount images and
// map owners. What another user's process can do is less; package doc.
func asRoot() bool { return os.Geteuid() == 0 }

// idRange is how many users and groups a guest has.
const idRange = 1 << 16

// taskID is the user and group that a guest's tasks run as.
const taskID = 1000

// baseID is the host's number for a guest's user 0: a range of its own above
// those that systemd gives to containers (systemd.io/UIDS-GIDS: up to
// 0x6fffffff) and below the signed limit. Two guests of 4,096 that share one
// still do not see each other.
func baseID(dir string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(dir))
	return 0x70000000 + h.Sum32()%4096*idRange
}

// mapRange starts a process as root of a new user namespace whose users are
// the host's from base on.
func mapRange(a *syscall.SysProcAttr, base int) {
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: idRange}}
	a.Cloneflags |= syscall.CLONE_NEWUSER
	a.UidMappings, a.GidMappings, a.GidMappingsEnableSetgroups = m, m, true
	a.Credential = &syscall.Credential{Uid: 0, Gid: 0}
}

// sources are the files of the host that a guest is made from, each opened
// once, and the mounts made of them.
type sources struct {
	spec  *wallSpec
	base  uint32
	notes []string

	agent, tree, changes *os.File
	image                *os.File
	shares               []*os.File
	fds                  map[*os.File]int // in bwrap
}

// openSources opens them all in the calling thread's mount namespace, which,
// as root, becomes a private one first.
func openSources(spec *wallSpec) (_ *sources, err error) {
	s := &sources{spec: spec, fds: map[*os.File]int{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if asRoot() {
		s.base = baseID(spec.Dir)
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err != nil {
			return nil, &hypervisor.Error{Op: "make a mount namespace", Err: err, Cure: "as root, Carrel needs CAP_SYS_ADMIN, which a container may lack: run it as an ordinary user"}
		}
	}
	if s.agent, err = openPath(spec.Agent, 0); err != nil {
		return nil, &hypervisor.Error{Op: "open the agent", Err: err, Cure: "make build"}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(s.agent.Fd()), &st); err != nil {
		return nil, err
	}
	if asRoot() && st.Mode&0o005 != 0o005 { // the guest's root is nobody here
		return nil, &hypervisor.Error{Op: "open the agent", Err: fmt.Errorf("%s has mode %#o; everybody must be able to run it", spec.Agent, st.Mode&0o777), Cure: "chmod a+rx " + spec.Agent}
	}
	if spec.Image != "" {
		s.image, err = openPath(spec.Image, 0)
	} else if spec.Tree != "" {
		s.tree, err = openPath(spec.Tree, unix.O_DIRECTORY)
	}
	if err != nil {
		return nil, &hypervisor.Error{Op: "open the guest's image", Err: err, Cure: "carrel image build, or make image"}
	}
	if spec.Changes != "" {
		if err := os.Mkdir(spec.Changes, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		if s.changes, err = openPath(spec.Changes, unix.O_DIRECTORY); err != nil {
			return nil, err
		}
		if asRoot() {
			if err := unix.Fchownat(int(s.changes.Fd()), "", int(s.base), int(s.base), unix.AT_EMPTY_PATH); err != nil {
				return nil, err
			}
		}
	}
	for _, sh := range spec.Shares {
		f, err := openPath(sh.Path, unix.O_DIRECTORY)
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", sh.Path, err)
		}
		s.shares = append(s.shares, f)
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

func (s *sources) close() {
	for _, f := range append([]*os.File{s.agent, s.tree, s.changes, s.image}, s.shares...) {
		if f != nil {
			f.Close()
		}
	}
}

// inherited are the files that bwrap mounts by descriptor, the first of which
// will be number first there. As root it mounts what stage has put in place.
func (s *sources) inherited(first int) (files []*os.File) {
	if asRoot() {
		return nil
	}
	for _, f := range append([]*os.File{s.agent, s.tree, s.changes}, s.shares...) {
		if f != nil {
			s.fds[f] = first + len(files)
			files = append(files, f)
		}
	}
	return files
}

// plan is what Args can know before anything is mounted.
func (w *wallSpec) plan() Plan {
	return Plan{Mapped: asRoot(), HostRoot: w.Image == "" && w.Tree == "", MemoryMiB: w.MemoryMiB}
}

// stage makes the mounts that take a right, and returns what bwrap is to do.
// pid is that of a process in the guest's user namespace.
func (s *sources) stage(pid int) (Plan, error) {
	p := s.spec.plan()
	place := func(f *os.File, dest string, writable bool) {
		p.Binds = append(p.Binds, Bind{Source: f.Name(), FD: s.fds[f], Dest: dest, Writable: writable})
	}
	if asRoot() {
		st, err := s.mountStage(pid)
		if err != nil {
			return p, &hypervisor.Error{Op: "prepare the guest's files", Err: err}
		}
		place = func(f *os.File, dest string, writable bool) {
			p.Binds = append(p.Binds, Bind{Source: st[f], Dest: dest, Writable: writable})
		}
	}
	place(s.agent, insideAgent, false)
	switch {
	case s.image != nil:
		place(s.image, insideImage, false)
	case s.tree != nil:
		place(s.tree, insideImage, false)
	default:
		hostRoot(&p)
	}
	if s.changes != nil {
		place(s.changes, insideChanges, true)
	}
	for i, f := range s.shares {
		place(f, filepath.Join(insideShares, strconv.Itoa(i)), s.spec.Shares[i].Writable)
	}
	return p, nil
}

// stageDir is where root's mounts are put, in the private mount namespace: a
// folder that is everywhere and whose parents everybody may enter.
const stageDir = "/tmp"

// mountStage mounts the image and the shares with their owners mapped, and
// returns where each is.
func (s *sources) mountStage(pid int) (map[*os.File]string, error) {
	if err := unix.Mount("stage", stageDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=64m"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs: %w", err)
	}
	guest, err := unix.Open(fmt.Sprintf("/proc/%d/ns/user", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the guest's user namespace: %w", err)
	}
	defer unix.Close(guest)
	at := map[*os.File]string{}
	if at[s.agent], err = attach(s.agent, "agent", unix.MOUNT_ATTR_RDONLY, -1); err != nil {
		return nil, fmt.Errorf("mount the agent: %w", err)
	}
	if s.image != nil {
		if at[s.image], err = mountImage(s.image, guest); err != nil {
			return nil, fmt.Errorf("mount the image %s: %w", s.image.Name(), err)
		}
	}
	if s.changes != nil {
		if at[s.changes], err = attach(s.changes, "changes", 0, -1); err != nil {
			return nil, err
		}
	}
	owners := ownerMaps{bwrap: s.spec.Bwrap, base: int(s.base), known: map[[2]uint32]int{}}
	defer owners.close()
	for i, f := range s.shares {
		var attr uint64
		if !s.spec.Shares[i].Writable {
			attr = unix.MOUNT_ATTR_RDONLY
		}
		ns, err := owners.namespace(f)
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", f.Name(), err)
		}
		name := "share" + strconv.Itoa(i)
		at[f], err = attach(f, name, attr, ns)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			// A file system that cannot map owners (FUSE, NFS, ...).
			s.notes = append(s.notes, fmt.Sprintf("share %s: its file system cannot map owners, so the guest may do there what other users of this machine may", f.Name()))
			at[f], err = attach(f, name, attr, -1)
		}
		if err != nil {
			return nil, fmt.Errorf("share %s: %w", f.Name(), err)
		}
	}
	return at, nil
}

// mountImage mounts an EROFS image, its users those of the guest.
func mountImage(image *os.File, userns int) (string, error) {
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
	return move(m, "image", unix.MOUNT_ATTR_RDONLY, userns)
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
	a := unix.MountAttr{Attr_set: attr | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if userns >= 0 {
		a.Attr_set |= unix.MOUNT_ATTR_IDMAP
		a.Userns_fd = uint64(userns)
	}
	if err := unix.MountSetattr(m, "", unix.AT_EMPTY_PATH, &a); err != nil {
		return "", fmt.Errorf("mount_setattr: %w", err)
	}
	path := filepath.Join(stageDir, name)
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
	bwrap string
	base  int
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
	// A namespace needs a process to be made by; bwrap waits for arguments
	// that never come.
	r, w, err := os.Pipe()
	if err != nil {
		return -1, err
	}
	defer w.Close()
	defer r.Close()
	cmd := exec.Command(o.bwrap, "--args", "3")
	cmd.Env, cmd.Dir, cmd.ExtraFiles = []string{}, "/", []*os.File{r}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: int(st.Uid), HostID: o.base + taskID, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: int(st.Gid), HostID: o.base + taskID, Size: 1}},
	}
	if err := cmd.Start(); err != nil {
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

func (o *ownerMaps) close() {
	for _, fd := range o.known {
		unix.Close(fd)
	}
}
