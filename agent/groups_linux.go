package agent

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Control groups of a guest: the agent's own, and one for all tasks together,
// so that what they do leaves room for the agent.
const (
	groupsDir  = "/sys/fs/cgroup"
	agentGroup = groupsDir + "/agent"
	tasksGroup = groupsDir + "/tasks"
)

// controllers are those that tasks are limited by.
const controllers = "+memory +pids +cpu"

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
		{groupsDir + "/cgroup.subtree_control", controllers},
		{agentGroup + "/cgroup.procs", "1"},
		{agentGroup + "/memory.min", strconv.FormatUint(reserve/2, 10)},
		{agentGroup + "/cpu.weight", "1000"},
		{tasksGroup + "/cgroup.subtree_control", controllers},
		{tasksGroup + "/memory.max", strconv.FormatUint(total-reserve, 10)},
		{tasksGroup + "/pids.max", strconv.FormatUint(min(threads/4*3, 16<<10), 10)},
		{"/proc/self/oom_score_adj", "-1000"},
	}
	for _, d := range []string{agentGroup, tasksGroup, tasksGroup + "/" + copyName} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	for _, s := range steps {
		if err := os.WriteFile(s.file, []byte(s.value), 0o644); err != nil {
			return fmt.Errorf("reserve room for the agent: %w", err)
		}
	}
	return nil
}

func number(path string) (uint64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 63)
}
