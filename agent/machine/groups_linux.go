package machine

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"syscall"
)

// Control groups of a guest: the agent's own, and one for all tasks together,
// so that what they do leaves room for the agent.
const (
	GroupsDir  = "/sys/fs/cgroup"
	AgentGroup = GroupsDir + "/agent"
	TasksGroup = GroupsDir + "/tasks"
	// CopyGroup is that of whoever copies for a task, beneath TasksGroup.
	CopyGroup = "carrel-copy"
)

// Controllers are those that tasks are limited by.
const Controllers = "+memory +pids +cpu"

// groups divides the guest's memory and processes between agent and tasks.
func groups() error {
	total, err := memTotal()
	if err != nil {
		return err
	}
	// An eighth, at least 32 MiB and at most 256, stays for the agent and for
	// what the kernel charges to nobody.
	reserve := min(max(total/8, 32<<20), 256<<20)
	threads, err := number("/proc/sys/kernel/threads-max")
	if err != nil {
		return err
	}
	steps := []struct{ file, value string }{
		{GroupsDir + "/cgroup.subtree_control", Controllers},
		{AgentGroup + "/cgroup.procs", "1"},
		{AgentGroup + "/memory.min", strconv.FormatUint(reserve/2, 10)},
		{AgentGroup + "/cpu.weight", "1000"},
		{TasksGroup + "/cgroup.subtree_control", Controllers},
		{TasksGroup + "/memory.max", strconv.FormatUint(total-reserve, 10)},
		{TasksGroup + "/pids.max", strconv.FormatUint(min(threads/4*3, 16<<10), 10)},
		{"/proc/self/oom_score_adj", "-1000"},
	}
	for _, d := range []string{AgentGroup, TasksGroup, TasksGroup + "/" + CopyGroup} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	for _, s := range steps {
		if err := os.WriteFile(s.file, []byte(s.value), 0o644); err != nil {
			return failed("set "+s.file, err)
		}
	}
	return nil
}

func number(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 63)
}

// harden sets what keeps the guest's users apart.
func harden() error {
	for file, value := range map[string]string{
		"kernel/dmesg_restrict":            "1",
		"kernel/kptr_restrict":             "1",
		"kernel/unprivileged_bpf_disabled": "1",
		"fs/protected_hardlinks":           "1",
		"fs/protected_symlinks":            "1",
		"fs/protected_fifos":               "1",
		"fs/protected_regular":             "2",
		"net/ipv4/ping_group_range":        "0 2147483647",
	} {
		if err := os.WriteFile("/proc/sys/"+file, []byte(value), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
			return failed("set "+file, err)
		}
	}
	return nil
}

// memTotal is the guest's memory in bytes: MemTotal of /proc/meminfo.
func memTotal() (uint64, error) {
	var i syscall.Sysinfo_t
	if err := syscall.Sysinfo(&i); err != nil {
		return 0, os.NewSyscallError("sysinfo", err)
	}
	return uint64(i.Totalram) * uint64(i.Unit), nil
}
