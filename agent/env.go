package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/carrel-vm/carrel/guest/wire"
)

// defaultPath is a task's PATH when the host gives none. The agent itself
// never looks anything up in a PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Bounds of one Exec. The kernel's own (128 KiB a string) are looser for the
// number of strings.
const (
	maxStrings = 64 << 10
	maxID      = 64
	maxRows    = 1<<16 - 1
)

// checkExec refuses a request that cannot be meant. Lengths were bounded by
// the frame.
func checkExec(e *wire.Exec) error {
	switch {
	case len(e.Argv) == 0:
		return errors.New("no command was given")
	case len(e.Argv)+len(e.Env) > maxStrings:
		return fmt.Errorf("%d arguments and variables, %d is the limit", len(e.Argv)+len(e.Env), maxStrings)
	case e.Cwd != "" && !strings.HasPrefix(e.Cwd, "/"):
		return fmt.Errorf("workdir %.200q is not absolute", e.Cwd)
	case e.Rows > maxRows || e.Cols > maxRows:
		return fmt.Errorf("a terminal of %d rows and %d columns; %d is the limit", e.Rows, e.Cols, maxRows)
	case !validID(e.Id):
		return fmt.Errorf("task id %.80q is not of the form [0-9A-Za-z]{1,%d}", e.Id, maxID)
	}
	for _, s := range e.Argv {
		if strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("argument %.80q holds a NUL byte", s)
		}
	}
	for _, s := range e.Env {
		if !validVariable(s) {
			return fmt.Errorf("variable %.80q is not of the form NAME=value without NUL bytes", s)
		}
	}
	if strings.IndexByte(e.Cwd, 0) >= 0 {
		return fmt.Errorf("workdir %.80q holds a NUL byte", e.Cwd)
	}
	return nil
}

func validID(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= maxID
}

// maxGuestEnv bounds the variables that Setup gives to every task.
const maxGuestEnv = 1024

// checkEnv refuses variables of Setup that cannot be meant.
func checkEnv(env []string) error {
	if len(env) > maxGuestEnv {
		return fmt.Errorf("%d variables for every task, %d is the limit", len(env), maxGuestEnv)
	}
	for _, s := range env {
		if !validVariable(s) {
			return fmt.Errorf("variable %.80q is not of the form NAME=value without NUL bytes", s)
		}
	}
	return nil
}

func validVariable(s string) bool {
	name, _, ok := strings.Cut(s, "=")
	return ok && name != "" && strings.IndexByte(s, 0) < 0
}

// environment is the task's: the guest's variables, over them those of the
// call, the last of each name, and what every program expects where they are
// missing.
func environment(guest, given []string, a *account, tty bool) []string {
	at := make(map[string]int, len(guest)+len(given)+6)
	env := make([]string, 0, len(guest)+len(given)+6)
	for _, v := range slices.Concat(guest, given) {
		name, _, _ := strings.Cut(v, "=")
		if i, ok := at[name]; ok {
			env[i] = v
			continue
		}
		at[name] = len(env)
		env = append(env, v)
	}
	for _, d := range [][2]string{
		{"PATH", defaultPath}, {"HOME", a.home}, {"USER", a.name},
		{"SHELL", a.shell}, {"LANG", "C.UTF-8"}, {"TERM", "xterm-256color"},
	} {
		if _, ok := at[d[0]]; !ok && (d[0] != "TERM" || tty) {
			env = append(env, d[0]+"="+d[1])
		}
	}
	return env
}
