package inherit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/windows"
)

// variable tells a process the handles it was started with, in hexadecimal with
// commas between them.
const variable = "CARREL_HANDLES"

const first = 3

// handles are this process's, and are not for those that it starts.
var handles = func() (list []uintptr) {
	for s := range strings.SplitSeq(os.Getenv(variable), ",") {
		h, err := strconv.ParseUint(s, 16, 64)
		if err != nil {
			break
		}
		windows.SetHandleInformation(windows.Handle(h), windows.HANDLE_FLAG_INHERIT, 0)
		list = append(list, uintptr(h))
	}
	os.Unsetenv(variable)
	return list
}()

// Start starts cmd with files as its descriptors 3, 4 and so on. They stay the
// caller's. No other handle is inherited than these and the standard streams.
func Start(cmd *exec.Cmd, files ...*os.File) (err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	own := windows.CurrentProcess()
	var words []string
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return err
		}
		var dup windows.Handle
		var derr error
		cerr := raw.Control(func(h uintptr) {
			derr = windows.DuplicateHandle(own, windows.Handle(h), own, &dup, 0, true, windows.DUPLICATE_SAME_ACCESS)
		})
		if err := errors.Join(cerr, derr); err != nil {
			return fmt.Errorf("hand %s on: %w", f.Name(), err)
		}
		defer windows.CloseHandle(dup)
		words = append(words, strconv.FormatUint(uint64(dup), 16))
		cmd.SysProcAttr.AdditionalInheritedHandles = append(cmd.SysProcAttr.AdditionalInheritedHandles, syscall.Handle(dup))
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, variable+"="+strings.Join(words, ","))
	return cmd.Start()
}

// File returns descriptor n of those that this process was started with; one that
// it was not started with cannot be used.
func File(n int, name string) *os.File {
	if n < first || n-first >= len(handles) {
		return os.NewFile(uintptr(windows.InvalidHandle), name)
	}
	return os.NewFile(handles[n-first], name)
}
