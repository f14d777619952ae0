//go:build unix

package stage

import (
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Files of a stage beside its stdin, stdout and stderr.
const (
	// SpecFD holds the encoded Spec: a file that stands at its beginning, or a pipe.
	SpecFD = 3
	// StatusFD gets one code byte and a message if the task cannot be
	// started, and is closed without a byte when the task begins.
	StatusFD = 4
)

// Codes of a task that could not be started, as shells give them.
const (
	CodeFailed      = 125
	CodeNotRunnable = 126
	CodeNotFound    = 127
)

// failure is an error with the code that the task then ends with.
type failure struct {
	code byte
	text string
}

func (f *failure) Error() string { return f.text }

func init() {
	if len(os.Args) != 1 || os.Args[0] != Name {
		return
	}
	// User, filter and limits are set for this thread alone; exec makes it
	// the whole process.
	runtime.LockOSThread()
	err := run()
	f, ok := err.(*failure)
	if !ok {
		f = &failure{CodeFailed, err.Error()}
	}
	_, _ = syscall.Write(StatusFD, append([]byte{f.code}, f.text...))
	os.Exit(CodeFailed)
}

// run becomes the task, or says why it cannot.
//
//  1. read the description, close every other file
//  2. limits, protections        as the agent's user
//  3. groups, user               from here on as the task's user
//  4. working directory, exec
func run() error {
	s, err := readSpec()
	if err != nil {
		return err
	}
	unix.CloseOnExec(StatusFD)
	if err := closeOthers(); err != nil {
		return os.NewSyscallError("close inherited files", err)
	}
	if err := restrict(s); err != nil {
		return err
	}
	if err := become(s); err != nil {
		return err
	}
	if err := enter(s); err != nil {
		return err
	}
	return execute(s)
}

func readSpec() (*Spec, error) {
	defer syscall.Close(SpecFD)
	var st syscall.Stat_t
	if err := syscall.Fstat(SpecFD, &st); err != nil {
		return nil, os.NewSyscallError("read task description", err)
	}
	size := st.Size
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG { // a pipe, which has no size
		size = MaxSpec
	}
	if size < 0 || size > MaxSpec {
		return nil, errSpec
	}
	b := make([]byte, size)
	n := 0
	for n < len(b) {
		m, err := syscall.Read(SpecFD, b[n:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("read task description", err)
		}
		if m == 0 {
			break
		}
		n += m
	}
	return Decode(b[:n])
}

func enter(s *Spec) error {
	err := syscall.Chdir(s.Dir)
	switch {
	case err == nil:
		return nil
	case s.DirOptional:
		return os.NewSyscallError("enter /", syscall.Chdir("/"))
	case err == syscall.ENOENT:
		return &failure{CodeFailed, "workdir " + quote(s.Dir) + " does not exist in the guest"}
	}
	return &failure{CodeFailed, "workdir " + quote(s.Dir) + " of the guest cannot be entered: " + err.Error()}
}

// execute becomes the command. There is no shell in between, and the lookup is
// the kernel's own answer to this user.
func execute(s *Spec) error {
	name := s.Argv[0]
	if name == "" {
		return &failure{CodeNotFound, "the command is empty"}
	}
	if strings.Contains(name, "/") {
		return refused(name, syscall.Exec(name, s.Argv, s.Env))
	}
	path := ""
	for _, e := range s.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	var denied error
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			dir = "."
		}
		err := syscall.Exec(dir+"/"+name, s.Argv, s.Env)
		switch err {
		case syscall.ENOENT, syscall.ENOTDIR:
		case syscall.EACCES:
			denied = err
		default:
			return refused(dir+"/"+name, err)
		}
	}
	if denied != nil {
		return refused(name, denied)
	}
	return &failure{CodeNotFound, quote(name) + " was not found in PATH of the guest"}
}

// refused turns the kernel's answer to an exec into a shell's.
func refused(name string, err error) error {
	switch err {
	case syscall.ENOENT, syscall.ENOTDIR:
		var st syscall.Stat_t
		if syscall.Stat(name, &st) == nil {
			return &failure{CodeNotFound, quote(name) + " is in the guest, but the interpreter or loader that it names is not"}
		}
		return &failure{CodeNotFound, quote(name) + " does not exist in the guest"}
	case syscall.ENOEXEC:
		return &failure{CodeNotRunnable, quote(name) + " is neither a program for this processor nor a script that begins with #!"}
	case syscall.E2BIG:
		return &failure{CodeNotRunnable, "the arguments and environment are too long for the guest's kernel"}
	}
	return &failure{CodeNotRunnable, quote(name) + " cannot be executed: " + err.Error()}
}

// quote bounds a name that came from outside, for a message.
func quote(s string) string {
	if len(s) > 200 {
		s = s[:200] + "..."
	}
	b := make([]byte, 0, len(s)+2)
	b = append(b, '"')
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == 0x7f || c == '"' {
			b = append(b, '?')
		} else {
			b = append(b, c)
		}
	}
	return string(append(b, '"'))
}

// limit sets resource limits, and the mode of new files.
func limit(s *Spec) error {
	for _, l := range s.Rlimits {
		// syscall's, not unix's Prlimit: it also tells the runtime not to
		// restore the limit on open files that it found at start.
		if err := syscall.Setrlimit(l.Resource, &syscall.Rlimit{Cur: l.Soft, Max: l.Hard}); err != nil {
			return os.NewSyscallError("set resource limit", err)
		}
	}
	syscall.Umask(0o022)
	return nil
}
