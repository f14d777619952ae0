package bubblewrap

import (
	"fmt"
	"strconv"
)

// Places in the file system that bwrap makes, from which the agent builds the
// guest's own. None of them is left when a task runs.
const (
	insideAgent   = "/agent"
	insideImage   = "/image"
	insideShares  = "/shares"
	insideChanges = "/changes"
)

// Descriptors that bwrap inherits. bwrap closes its own; the agent gets the
// first two.
const (
	fdBoot = 3 + iota
	fdCalls
	fdArgs
	fdStatus
	fdFilter // the first of the filters; binds come after the last
)

// Bind is one folder or file of the host that is mounted inside.
type Bind struct {
	// Source is a path, and FD an open O_PATH descriptor of the same file in
	// bwrap, or 0: bwrap ends if they differ when it has mounted.
	Source   string
	FD       int
	Dest     string
	Writable bool
}

// Link is a symbolic link inside.
type Link struct{ Target, Path string }

// Plan is what Args needs to know.
type Plan struct {
	// Mapped says that bwrap already runs as root of the guest's own user
	// namespace. Otherwise it makes one, in which there is one user.
	Mapped bool
	// Fuse is the /dev/fuse that the agent gets, or empty.
	Fuse string
	// Filters is how many seccomp programs bwrap inherits, from fdFilter on.
	Filters int
	// HostRoot says that the guest's root is the host's system: Binds and
	// Links lie in insideImage, which is otherwise empty.
	HostRoot bool
	Binds    []Bind
	Links    []Link
	// MemoryMiB is the guest's size.
	MemoryMiB int
}

// devices are all that a guest sees of the host's, but for /dev/fuse.
var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// Args is bwrap's command line, without the program: options and command. The
// options come to it over a descriptor.
func Args(p Plan) (options, command []string) {
	args := []string{
		"--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup",
		"--as-pid-1", "--die-with-parent", "--new-session", "--clearenv",
		// In the guest's own user namespace only; tasks get none of them.
		"--cap-add", "ALL",
		"--json-status-fd", strconv.Itoa(fdStatus),
	}
	if !p.Mapped {
		// The agent makes another namespace beneath, where it is nobody's
		// root: see package agent.
		args = append(args, "--unshare-user", "--uid", "0", "--gid", "0")
	}
	for i := range p.Filters {
		args = append(args, "--add-seccomp-fd", strconv.Itoa(fdFilter+i))
	}
	args = append(args, "--proc", "/proc", "--perms", "0755", "--tmpfs", "/dev")
	for _, d := range devices {
		args = append(args, "--dev-bind", "/dev/"+d, "/dev/"+d)
	}
	if p.Fuse != "" {
		args = append(args, "--dev-bind", p.Fuse, "/dev/fuse")
	}
	if p.HostRoot {
		args = append(args, "--perms", "0755", "--tmpfs", insideImage)
	}
	for _, b := range p.Binds {
		args = append(args, b.args()...)
	}
	for _, l := range p.Links {
		args = append(args, "--symlink", l.Target, l.Path)
	}
	args = append(args, "--chdir", "/")
	command = []string{insideAgent, "wall", fmt.Sprint("--boot-fd=", fdBoot), fmt.Sprint("--call-fd=", fdCalls), fmt.Sprint("--memory=", p.MemoryMiB)}
	if p.HostRoot {
		command = append(command, "--plain-root")
	}
	if !p.Mapped {
		command = append(command, "--one-user")
	}
	return args, command
}

func (b Bind) args() []string {
	flag := "--ro-bind"
	if b.Writable {
		flag = "--bind"
	}
	if b.FD != 0 {
		return []string{flag + "-fd", strconv.Itoa(b.FD), b.Dest}
	}
	return []string{flag, b.Source, b.Dest}
}
