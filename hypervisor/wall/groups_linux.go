package wall

import (
	"bufio"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Groups are the control groups of one guest: one folder in each hierarchy
// that this host has and that we may write to. The zero value has none.
type Groups struct {
	v2     string            // folder in the unified hierarchy, or empty
	v1     map[string]string // controller to folder
	limits []string          // what is limited, for notes
	absent []string          // what is not
	note   string            // what else does not hold
}

// mountPoints of the hierarchies, as every distribution has them.
const (
	cgroupRoot    = "/sys/fs/cgroup"
	cgroupUnified = "/sys/fs/cgroup/unified" // beside version 1
)

// NewGroups makes the guest's groups and sets their limits. A group of that
// name that a killed keeper left is taken over. owner, if not 0, gets the
// unified one, so that the agent can divide it among tasks.
func NewGroups(spec *Spec, owner uint32) (g Groups, err error) {
	own, err := ownGroups()
	if err != nil {
		return g, err
	}
	h := fnv.New32a()
	h.Write([]byte(spec.Dir))
	name := fmt.Sprintf("carrel-%s-%08x", spec.Name, h.Sum32())
	g.v1 = map[string]string{}
	defer func() {
		if err != nil {
			g.Remove()
		}
	}()
	limit := func(what string, files ...[2]string) {
		for _, f := range files {
			if err := os.WriteFile(f[0], []byte(f[1]), 0o644); err != nil {
				g.absent = append(g.absent, what)
				return
			}
		}
		g.limits = append(g.limits, what)
	}
	memory := strconv.FormatInt(int64(spec.MemoryMiB+spec.ExtraMiB)<<20, 10)
	for _, controller := range []string{"memory", "pids", "cpu", "freezer"} {
		path, ok := own[controller]
		if !ok {
			continue
		}
		dir := filepath.Join(cgroupRoot, controller, path, name)
		if makeGroup(dir) == nil {
			g.v1[controller] = dir
		}
	}
	unified := cgroupUnified
	if _, err := os.Stat(unified); err != nil {
		unified = cgroupRoot
	}
	if path, ok := own[""]; ok {
		g.v2 = v2Group(unified, path, name)
	}
	v2 := func(file string) string {
		if g.v2 == "" {
			return ""
		}
		if _, err := os.Stat(filepath.Join(g.v2, file)); err != nil {
			return ""
		}
		return filepath.Join(g.v2, file)
	}
	for _, l := range []struct{ what, controller, v1, v1Value, v2, v2Value string }{
		{memoryLimit, "memory", "memory.limit_in_bytes", memory, "memory.max", memory},
		{processLimit, "pids", "pids.max", strconv.Itoa(spec.Processes), "pids.max", strconv.Itoa(spec.Processes)},
		{cpuLimit, "cpu", "cpu.cfs_quota_us", strconv.Itoa(spec.CPUs * 100_000), "cpu.max", fmt.Sprint(spec.CPUs*100_000, " 100000")},
	} {
		switch dir := g.v1[l.controller]; {
		case dir != "":
			limit(l.what, [2]string{filepath.Join(dir, l.v1), l.v1Value})
		case v2(l.v2) != "":
			limit(l.what, [2]string{v2(l.v2), l.v2Value})
		default:
			g.absent = append(g.absent, l.what)
		}
	}
	// Memory that goes to the disk is memory all the same.
	if dir := g.v1["memory"]; dir != "" {
		_ = os.WriteFile(filepath.Join(dir, "memory.memsw.limit_in_bytes"), []byte(memory), 0o644) // absent without swap accounting
	}
	if f := v2("memory.swap.max"); f != "" {
		_ = os.WriteFile(f, []byte("0"), 0o644) // absent without swap
	}
	if g.v2 != "" && owner != 0 {
		// A host has 65,535 groups at most (mm/memcontrol.c, MEM_CGROUP_ID_MAX).
		for _, l := range [][2]string{{"cgroup.max.descendants", "256"}, {"cgroup.max.depth", "8"}} {
			if err := os.WriteFile(filepath.Join(g.v2, l[0]), []byte(l[1]), 0o644); err != nil {
				return g, fmt.Errorf("limit the guest's control groups: %w", err)
			}
		}
		for _, f := range []string{"", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"} {
			if err := os.Chown(filepath.Join(g.v2, f), int(owner), int(owner)); err != nil {
				return g, err
			}
		}
	}
	return g, nil
}

// ownGroups reads in which groups this process is; "" is the unified hierarchy.
func ownGroups() (map[string]string, error) {
	f, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	own := map[string]string{}
	for s := bufio.NewScanner(f); s.Scan(); { // hierarchy:controllers:path
		parts := strings.SplitN(s.Text(), ":", 3)
		if len(parts) != 3 || strings.HasPrefix(parts[2], "/..") {
			continue
		}
		for c := range strings.SplitSeq(parts[1], ",") {
			if !strings.HasPrefix(c, "name=") {
				own[c] = parts[2]
			}
		}
	}
	return own, nil
}

func makeGroup(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, os.ErrExist) {
		// What a killed wall left is empty, or its guest still dies.
		removeGroup(dir)
		err = os.Mkdir(dir, 0o755)
	}
	return err
}

// v2Group makes a group at or above our own in the unified hierarchy, the
// nearest that is ours to divide and has limits to give; else the nearest that
// is ours at all, or "".
func v2Group(mount, path, name string) string {
	bare := ""
	for p := path; ; p = filepath.Dir(p) {
		dir := filepath.Join(mount, p, name)
		if makeGroup(dir) == nil {
			if _, err := os.Stat(filepath.Join(dir, "memory.max")); err == nil {
				if bare != "" {
					unix.Rmdir(bare)
				}
				return dir
			}
			if bare == "" {
				bare = dir
			} else {
				unix.Rmdir(dir)
			}
		}
		if p == "/" || p == "." {
			return bare
		}
	}
}

// Add puts a process, and all that it will start, into the groups. What no
// group limits, the process's own limits do, as far as they go: the number of
// processes in a user namespace (Linux 5.14), the data of each.
func (g *Groups) Add(pid int, spec *Spec) error {
	var dirs []string
	for _, d := range g.v1 {
		dirs = append(dirs, d)
	}
	if g.v2 != "" {
		dirs = append(dirs, g.v2)
	}
	for _, d := range dirs {
		err := os.WriteFile(filepath.Join(d, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644)
		if errors.Is(err, unix.EACCES) && d == g.v2 {
			// A group that is ours, but not above both ends of the way there.
			unix.Rmdir(d)
			g.v2, g.limits, g.absent = "", nil, []string{memoryLimit, processLimit, cpuLimit}
			continue
		}
		if err != nil {
			return fmt.Errorf("put the guest into %s: %w", d, err)
		}
	}
	for _, what := range g.absent {
		resource, value := unix.RLIMIT_NPROC, uint64(spec.Processes)
		switch what {
		case memoryLimit:
			resource, value = unix.RLIMIT_DATA, uint64(spec.MemoryMiB+spec.ExtraMiB)<<20
		case cpuLimit:
			continue
		}
		if err := unix.Prlimit(pid, resource, &unix.Rlimit{Cur: value, Max: value}, nil); err != nil {
			return fmt.Errorf("limit the guest's %s: %w", what, err)
		}
	}
	return nil
}

// What is limited, in words.
const (
	memoryLimit  = "memory"
	processLimit = "processes"
	cpuLimit     = "processor time"
)

// Notes say what is limited, and by what.
func (g *Groups) Notes() (n []string) {
	how := "cgroup v2"
	if len(g.v1) > 0 {
		how = "cgroup v1"
	}
	if len(g.limits) > 0 {
		n = append(n, "limited by "+how+": "+strings.Join(g.limits, ", "))
	}
	for _, what := range g.absent {
		switch what {
		case memoryLimit:
			n = append(n, "memory: the data of each process is limited, not what all have together nor what they put into files in memory (no control group is ours)")
		case processLimit:
			n = append(n, "processes: limited by rlimit (no control group is ours)")
		case cpuLimit:
			n = append(n, "processor time: not limited (no control group is ours)")
		}
	}
	if g.note != "" {
		n = append(n, g.note)
	}
	return n
}

// Freeze stops every process, and Thaw lets them go on. Both say false where
// there is no freezer.
func (g *Groups) Freeze() (bool, error) {
	switch {
	case g.v1["freezer"] != "":
		return true, freezeV1(filepath.Join(g.v1["freezer"], "freezer.state"))
	case g.v2 != "":
		if err := os.WriteFile(filepath.Join(g.v2, "cgroup.freeze"), []byte("1"), 0o644); err != nil {
			return true, err
		}
		return true, settle(filepath.Join(g.v2, "cgroup.events"), "frozen 1")
	}
	return false, nil
}

func (g *Groups) Thaw() bool {
	switch {
	case g.v1["freezer"] != "":
		_ = os.WriteFile(filepath.Join(g.v1["freezer"], "freezer.state"), []byte("THAWED"), 0o644)
	case g.v2 != "":
		_ = os.WriteFile(filepath.Join(g.v2, "cgroup.freeze"), []byte("0"), 0o644)
	default:
		return false
	}
	return true
}

// freezeTimeout is how long processes may take to stop; one that waits for a
// disk stops when it comes back.
const freezeTimeout = 5 * time.Second

// freezeV1 asks again and again, and lets all go on for a moment in between: of
// processes that trace one another, as gVisor's do, version 1 stays at FREEZING
// now and then, and does not come on by itself (runc does the same,
// libcontainer/cgroups/fs/freezer.go).
func freezeV1(file string) error {
	for end := time.Now().Add(freezeTimeout); ; {
		for range 50 {
			if err := os.WriteFile(file, []byte("FROZEN"), 0o644); err != nil {
				return err
			}
			b, err := os.ReadFile(file)
			if err != nil || strings.TrimSpace(string(b)) == "FROZEN" {
				return err
			}
			time.Sleep(time.Millisecond)
		}
		if time.Now().After(end) {
			return fmt.Errorf("not every process stopped within %v", freezeTimeout)
		}
		if err := os.WriteFile(file, []byte("THAWED"), 0o644); err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// settle waits until a file of a control group says word.
func settle(file, word string) error {
	for end := time.Now().Add(freezeTimeout); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(file)
		if err != nil || strings.Contains(string(b), word) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not every process stopped within %v", freezeTimeout)
		}
	}
}

// OOM says whether the kernel killed a process for lack of the guest's memory.
func (g *Groups) OOM() bool {
	for _, f := range []string{filepath.Join(g.v1["memory"], "memory.oom_control"), filepath.Join(g.v2, "memory.events")} {
		b, _ := os.ReadFile(f) // a relative name, where there is no such group, is not there
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "oom_kill "); ok && strings.TrimSpace(v) != "0" {
				return true
			}
		}
	}
	return false
}

// Remove removes the groups, whose processes have ended.
func (g *Groups) Remove() {
	for _, d := range g.v1 {
		removeGroup(d)
	}
	if g.v2 != "" {
		removeGroup(g.v2)
	}
	g.v1, g.v2 = nil, ""
}

// removeGroup removes a group and those beneath it. A process that has ended
// may still be counted for a moment.
func removeGroup(dir string) {
	var dirs []string
	_ = filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() && len(dirs) < 10_000 {
			dirs = append(dirs, p)
		}
		return nil
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		for range 100 {
			if err := unix.Rmdir(dirs[i]); !errors.Is(err, unix.EBUSY) {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}
