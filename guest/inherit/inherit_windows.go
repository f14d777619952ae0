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

// given is what this process was started with, in their order.
type given struct {
	r, w  windows.Handle // w is 0 for a file
	leads bool
}

// handles are this process's, and are not for those that it starts.
var handles = func() (list []given) {
	defer os.Unsetenv(variable)
	for s := range strings.SplitSeq(os.Getenv(variable), ",") {
		var g given
		s, g.leads = strings.CutSuffix(s, "+")
		r, w, pair := strings.Cut(s, ":")
		for i, text := range []string{r, w}[:1+number(pair)] {
			h, err := strconv.ParseUint(text, 16, 64)
			if err != nil {
				return list
			}
			windows.SetHandleInformation(windows.Handle(h), windows.HANDLE_FLAG_INHERIT, 0)
			*[]*windows.Handle{&g.r, &g.w}[i] = windows.Handle(h)
		}
		list = append(list, g)
	}
	return list
}()

func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Handed is what a process can be started with: an *os.File or an *End.
type Handed interface{ Name() string }

// Start starts cmd with files as its descriptors 3, 4 and so on. They stay the
// caller's. No other handle is inherited than these and the standard streams.
func Start(cmd *exec.Cmd, files ...Handed) (err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	own := windows.CurrentProcess()
	var words []string
	inherits := func(h windows.Handle) string {
		cmd.SysProcAttr.AdditionalInheritedHandles = append(cmd.SysProcAttr.AdditionalInheritedHandles, syscall.Handle(h))
		return strconv.FormatUint(uint64(h), 16)
	}
	for _, f := range files {
		if e, is := f.(*End); is {
			r, w, err := e.Duplicate(own, true)
			if err != nil {
				return err
			}
			defer windows.CloseHandle(r)
			defer windows.CloseHandle(w)
			words = append(words, inherits(r)+":"+inherits(w)+strings.Repeat("+", number(e.Leads)))
			continue
		}
		file, is := f.(*os.File)
		if !is {
			return fmt.Errorf("%T cannot be inherited", f)
		}
		raw, err := file.SyscallConn()
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
		words = append(words, inherits(dup))
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
	if n < first || n-first >= len(handles) || handles[n-first].w != 0 {
		return os.NewFile(uintptr(windows.InvalidHandle), name)
	}
	return os.NewFile(uintptr(handles[n-first].r), name)
}

// Take is File for one end of a stream between processes; nil is not one.
func Take(n int, name string) *End {
	if n < first || n-first >= len(handles) || handles[n-first].w == 0 {
		return nil
	}
	g := handles[n-first]
	return &End{name: name, Leads: g.leads, r: g.r, w: g.w}
}
