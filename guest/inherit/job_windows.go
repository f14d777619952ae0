package inherit

import (
	"fmt"
	"os/exec"
	"unsafe"

	"golang.org/x/sys/windows"
)

// allUI is every restriction of a job's user interface (winnt.h, JOB_OBJECT_UILIMIT_ALL):
// the desktop, the clipboard, other programs' windows, the end of the session.
const allUI = 0xff

var isProcessInJob = windows.NewLazySystemDLL("kernel32.dll").NewProc("IsProcessInJob")

// Hold puts a process that was just started, and has not been told what to do,
// into a job in which it may start no other; without Outlive it ends with this
// process, whatever the way. ended is called when the process has.
func Hold(cmd *exec.Cmd, l Limits) (ended func(), err error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return nil, fmt.Errorf("make a job for %s: %w", cmd.Path, err)
	}
	defer func() {
		if err != nil {
			windows.CloseHandle(job)
		}
	}()
	var info windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION
	info.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_ACTIVE_PROCESS | windows.JOB_OBJECT_LIMIT_PROCESS_MEMORY | windows.JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION
	if !l.Outlive {
		info.BasicLimitInformation.LimitFlags |= windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	}
	info.BasicLimitInformation.ActiveProcessLimit = 1
	info.ProcessMemoryLimit = uintptr(l.Memory)
	ui := windows.JOBOBJECT_BASIC_UI_RESTRICTIONS{UIRestrictionsClass: allUI}
	if _, err = windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info))); err != nil {
		return nil, fmt.Errorf("limit the job of %s: %w", cmd.Path, err)
	}
	herr := cmd.Process.WithHandle(func(h uintptr) {
		var nested int32
		if r, _, e := isProcessInJob.Call(h, 0, uintptr(unsafe.Pointer(&nested))); r == 0 {
			err = e
			return
		}
		// A job within another cannot have these (AssignProcessToJobObject, Remarks).
		if nested == 0 {
			if _, err = windows.SetInformationJobObject(job, windows.JobObjectBasicUIRestrictions, uintptr(unsafe.Pointer(&ui)), uint32(unsafe.Sizeof(ui))); err != nil {
				return
			}
		}
		err = windows.AssignProcessToJobObject(job, windows.Handle(h))
	})
	if herr != nil {
		err = herr
	}
	if err != nil {
		return nil, fmt.Errorf("put %s into its job: %w", cmd.Path, err)
	}
	return func() { windows.CloseHandle(job) }, nil
}
