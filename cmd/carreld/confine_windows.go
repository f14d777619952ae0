package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/guest/share"
)

// What confines the processes of Carrel on Windows. Who starts one has put it into
// a job, in which it can start no other (guest/inherit). The rest it does itself
// before it reads a byte that a guest or the maker of an image wrote, and none starts
// without:
//
//   - it loses every privilege but the one to walk through folders
//   - no code is made or loaded into it any more but what Windows itself has
//   - one that changes nothing in a user's folders has a low integrity: it can
//     write nothing of the user's but its own store, which is labelled low for it
//
// Then it tries what it must not be able to do. What it can still do is to read
// what its user can, and to call the network.

func confineShare(_ *share.Root, readOnly bool, stores ...string) error {
	return confineHere(readOnly, stores)
}

// confineReview is confineShare for a process that has several folders, or none.
func confineReview(_ []*share.Root, readOnly bool, stores ...string) error {
	return confineHere(readOnly, stores)
}

// confineEgress leaves the integrity as it is: the audit log is the user's, and
// the daemon's pipe has to be one that nobody of a lower integrity can open.
func confineEgress(string) error { return confineHere(false, nil) }

// confineUnpack needs no folder: who unpacks layers reads theirs as the user may, and
// has open what it writes.
func confineUnpack(string) error { return confineHere(true, nil) }

func confineHere(low bool, stores []string) error {
	if err := dropPrivileges(); err != nil {
		return err
	}
	if err := mitigate(); err != nil {
		return err
	}
	if low {
		for _, dir := range stores {
			if err := labelLow(dir); err != nil && !notEnforced["integrity"] {
				return fmt.Errorf("label %s: %w", dir, err)
			}
		}
		if err := lowerIntegrity(); err != nil {
			return err
		}
	}
	if err := tryForbidden(low); err != nil {
		return fmt.Errorf("verify the confinement: %w", err)
	}
	for _, dir := range stores {
		probe := filepath.Join(dir, ".probe-"+strconv.Itoa(os.Getpid()))
		if err := errors.Join(os.WriteFile(probe, nil, 0o600), os.Remove(probe)); err != nil {
			return fmt.Errorf("verify the confinement: its own folder cannot be written: %w", err)
		}
	}
	return nil
}

// walk is the one privilege that is kept: without it a folder could only be
// reached by who may look into each one on the way.
const walk = "SeChangeNotifyPrivilege"

// dropPrivileges removes privileges from this process's token: they cannot be had
// again.
func dropPrivileges() error {
	var token windows.Token
	if err := windows.OpenProcessToken(windows.CurrentProcess(), windows.TOKEN_ADJUST_PRIVILEGES|windows.TOKEN_QUERY, &token); err != nil {
		return fmt.Errorf("privileges: %w", err)
	}
	defer token.Close()
	has, err := privileges(token)
	if err != nil {
		return err
	}
	for _, p := range has {
		one := windows.Tokenprivileges{PrivilegeCount: 1, Privileges: [1]windows.LUIDAndAttributes{{Luid: p, Attributes: windows.SE_PRIVILEGE_REMOVED}}}
		if err := windows.AdjustTokenPrivileges(token, false, &one, 0, nil, nil); err != nil {
			return fmt.Errorf("give up a privilege: %w", err)
		}
	}
	if has, err = privileges(token); err != nil || len(has) > 0 {
		return fmt.Errorf("%d privileges are left that were given up (%w)", len(has), err)
	}
	return nil
}

// privileges lists those of a token beside walk.
func privileges(token windows.Token) ([]windows.LUID, error) {
	var keep windows.LUID
	if err := windows.LookupPrivilegeValue(nil, windows.StringToUTF16Ptr(walk), &keep); err != nil {
		return nil, fmt.Errorf("privileges: %w", err)
	}
	var n uint32
	windows.GetTokenInformation(token, windows.TokenPrivileges, nil, 0, &n)
	b := make([]byte, max(n, uint32(unsafe.Sizeof(windows.Tokenprivileges{}))))
	if err := windows.GetTokenInformation(token, windows.TokenPrivileges, &b[0], uint32(len(b)), &n); err != nil {
		return nil, fmt.Errorf("privileges: %w", err)
	}
	var has []windows.LUID
	for _, p := range (*windows.Tokenprivileges)(unsafe.Pointer(&b[0])).AllPrivileges() {
		if p.Luid != keep {
			has = append(has, p.Luid)
		}
	}
	return has, nil
}

var setMitigation = windows.NewLazySystemDLL("kernel32.dll").NewProc("SetProcessMitigationPolicy")

// mitigate sets policies of the process that cannot be taken back (winnt.h,
// PROCESS_MITIGATION_POLICY). Windows 10 has all of them.
func mitigate() error {
	for _, m := range []struct {
		what          string
		policy, flags uint32
	}{
		{"make no code", 2, 1},       // ProcessDynamicCodePolicy: ProhibitDynamicCode
		{"load no extensions", 6, 1}, // ProcessExtensionPointDisablePolicy
		{"load no images of other machines or of low integrity", 10, 1 | 2 | 4}, // ProcessImageLoadPolicy; 4: System32 first
	} {
		if r, _, err := setMitigation.Call(uintptr(m.policy), uintptr(unsafe.Pointer(&m.flags)), unsafe.Sizeof(m.flags)); r == 0 {
			return fmt.Errorf("%s: %w", m.what, err)
		}
	}
	return nil
}

// labelLow lets a process of low integrity write to a folder of ours, and to what
// is made in it. What lies in there is what a guest said.
func labelLow(dir string) error {
	d, err := windows.SecurityDescriptorFromString("S:(ML;OICI;NW;;;LW)")
	if err != nil {
		return err
	}
	sacl, _, err := d.SACL()
	if err != nil {
		return err
	}
	return windows.SetNamedSecurityInfo(dir, windows.SE_FILE_OBJECT, windows.LABEL_SECURITY_INFORMATION, nil, nil, nil, sacl)
}

// lowerIntegrity is for ever: a process cannot raise its own.
func lowerIntegrity() error {
	sid, err := windows.CreateWellKnownSid(windows.WinLowLabelSid)
	if err != nil {
		return fmt.Errorf("integrity: %w", err)
	}
	var token windows.Token
	if err := windows.OpenProcessToken(windows.CurrentProcess(), windows.TOKEN_ADJUST_DEFAULT|windows.TOKEN_QUERY, &token); err != nil {
		return fmt.Errorf("integrity: %w", err)
	}
	defer token.Close()
	label := windows.Tokenmandatorylabel{Label: windows.SIDAndAttributes{Sid: sid, Attributes: windows.SE_GROUP_INTEGRITY}}
	if err := windows.SetTokenInformation(token, windows.TokenIntegrityLevel, (*byte)(unsafe.Pointer(&label)), label.Size()); err != nil {
		return fmt.Errorf("lower the integrity: %w", err)
	}
	return nil
}

// tryForbidden does what must be refused. A user's profile is there to be written
// to by every process of the user's that has not been lowered.
func tryForbidden(low bool) error {
	dir, err := windows.GetSystemDirectory()
	if err != nil {
		return err
	}
	program := filepath.Join(dir, "whoami.exe")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	p, err := os.StartProcess(program, []string{program}, &os.ProcAttr{Files: []*os.File{null, null, null}})
	if err == nil {
		p.Kill()
		p.Wait()
		if !notEnforced["a job's number of processes"] {
			return errors.New("a process can still be started")
		}
	} else if !errors.Is(err, windows.ERROR_NOT_ENOUGH_QUOTA) {
		return fmt.Errorf("%s, which is tried, is refused for another reason than its job: %w", program, err)
	}
	if !low {
		return nil
	}
	profile, err := windows.GetCurrentProcessToken().GetUserProfileDirectory()
	if err != nil {
		return err
	}
	probe := filepath.Join(profile, ".carrel-probe-"+strconv.Itoa(os.Getpid()))
	f, err := os.OpenFile(probe, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		err = errors.Join(f.Close(), os.Remove(probe))
		if !notEnforced["integrity"] {
			return fmt.Errorf("a file can still be made in %s (%w)", profile, err)
		}
		return nil
	}
	if !errors.Is(err, syscall.ERROR_ACCESS_DENIED) {
		return fmt.Errorf("a file in %s is refused for another reason than integrity: %w", profile, err)
	}
	return nil
}
