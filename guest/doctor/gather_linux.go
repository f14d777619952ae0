package doctor

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// ReadLinux gathers what this host says without anything being started; the
// programs, and what boots on KVM, are the caller's. unit is where the daemon's
// systemd user unit would lie, or empty.
func ReadLinux(unit string) Linux {
	l := Linux{Distribution: distribution(), KVM: readKVM(), Cgroups: readCgroups(), FUSE: readDevice("/dev/fuse")}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		l.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	abi, err := llsyscall.LandlockGetABIVersion()
	l.Landlock = Landlock{ABI: abi, BuiltIn: errors.Is(err, unix.EOPNOTSUPP), LSMs: strings.TrimSpace(read("/sys/kernel/security/lsm"))}
	if err != nil {
		l.Landlock.ABI = 0
	} else {
		l.Landlock.BuiltIn = true
	}
	// A kernel with filters refuses to read one from nowhere; one without does not know the mode.
	_, _, errno := unix.Syscall6(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0, 0)
	l.Seccomp = errno == unix.EFAULT
	for _, t := range Tools {
		if !hasTool(t.Name) {
			l.Missing = append(l.Missing, t)
		}
	}
	if me, err := user.Current(); err == nil {
		l.Service.User = me.Username
		_, err = os.Stat(filepath.Join("/var/lib/systemd/linger", filepath.Base(me.Username)))
		l.Service.Linger = err == nil
	}
	if unit != "" {
		if _, err := os.Stat(unit); err == nil {
			l.Service.Unit = unit
		}
	}
	return l
}

// sbin are folders of system tools that an ordinary user's PATH lacks on some
// distributions. Whoever starts one of the tools looks there, too.
var sbin = []string{"/usr/sbin", "/sbin"}

// hasTool looks for a program as those do who start it.
func hasTool(name string) bool {
	_, err := exec.LookPath(name)
	for _, dir := range sbin {
		if err != nil {
			_, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	return err == nil
}

// maxRead bounds what is read of a file in /proc, /sys or /etc, in bytes.
const maxRead = 1 << 20

func read(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, maxRead))
	return string(b)
}

func distribution() (d Distribution) {
	s := bufio.NewScanner(strings.NewReader(read("/etc/os-release")))
	for s.Scan() {
		k, v, _ := strings.Cut(s.Text(), "=")
		if u, err := strconv.Unquote(v); err == nil {
			v = u
		}
		switch k {
		case "ID":
			d.ID = v
		case "ID_LIKE":
			d.Like = v
		case "PRETTY_NAME":
			d.Name = v
		}
	}
	return d
}

func readDevice(path string) (d Device) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	d.Exists = !errors.Is(err, os.ErrNotExist)
	if err != nil {
		d.Denied, d.Trouble = errors.Is(err, os.ErrPermission), err.Error()
		return d
	}
	f.Close()
	d.Opens = true
	return d
}

func readKVM() KVM {
	k := KVM{Device: readDevice("/dev/kvm")}
	s := bufio.NewScanner(strings.NewReader(read("/proc/cpuinfo")))
	s.Buffer(nil, maxRead)
	for s.Scan() {
		name, flags, _ := strings.Cut(s.Text(), ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		words := strings.Fields(flags)
		k.Virtual = slices.Contains(words, "hypervisor")
		for _, e := range []string{"vmx", "svm"} {
			if slices.Contains(words, e) {
				k.Extension = e
			}
		}
		break
	}
	fi, err := os.Stat("/dev/kvm")
	if err != nil {
		return k
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || fi.Mode().Perm()&0o060 != 0o060 {
		return k
	}
	gid := strconv.Itoa(int(st.Gid))
	g, err := user.LookupGroupId(gid)
	if err != nil {
		return k
	}
	k.Group = g.Name
	if mine, err := os.Getgroups(); err == nil {
		k.InSession = slices.Contains(mine, int(st.Gid)) || os.Getegid() == int(st.Gid)
	}
	if me, err := user.Current(); err == nil {
		ids, _ := me.GroupIds()
		k.Member = slices.Contains(ids, gid)
	}
	return k
}

// readCgroups finds the groups of this process, and which of their controllers
// it may write to.
func readCgroups() (c Cgroups) {
	const root = "/sys/fs/cgroup"
	versions := map[string]bool{}
	may := func(dir string) bool { return unix.Access(dir, unix.W_OK) == nil }
	for _, line := range strings.Split(read("/proc/self/cgroup"), "\n") {
		id, rest, _ := strings.Cut(line, ":")
		names, path, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		if id == "0" && names == "" {
			for _, at := range []string{root, root + "/unified"} {
				if b := read(filepath.Join(at, path, "cgroup.controllers")); b != "" && may(filepath.Join(at, path)) {
					c.Controllers = append(c.Controllers, strings.Fields(b)...)
				}
				if _, err := os.Stat(filepath.Join(at, path, "cgroup.procs")); err == nil {
					versions["2"] = true
				}
			}
			continue
		}
		for _, name := range strings.Split(names, ",") {
			dir := filepath.Join(root, name, path)
			if _, err := os.Stat(dir); err == nil && !strings.HasPrefix(name, "name=") {
				versions["1"] = true
				if may(dir) {
					c.Controllers = append(c.Controllers, name)
				}
			}
		}
	}
	switch {
	case versions["1"] && versions["2"] && len(c.Controllers) > 0:
		c.Version = "1 and 2"
	case versions["1"]:
		c.Version = "1"
	case versions["2"]:
		c.Version = "2"
	}
	slices.Sort(c.Controllers)
	c.Controllers = slices.Compact(c.Controllers)
	return c
}
