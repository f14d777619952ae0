package main

import (
	"fmt"

	"golang.org/x/sys/windows"
)

// What anybody of this user's may do with a process of ours: look whether it is
// there, wait for its end, and end it, as the next daemon does.
const shutRights = windows.PROCESS_QUERY_LIMITED_INFORMATION | windows.PROCESS_TERMINATE | windows.SYNCHRONIZE

// shutProcess keeps this user's other processes from opening this one for its
// memory, for its handles or to start a thread in it, and from giving themselves
// the right to; those that read what a guest wrote have no privilege that goes past
// it. It holds for who opens it from now on, and not for threads, which have lists
// of their own: who opens one can still make it go somewhere else.
func shutProcess() error {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return fmt.Errorf("shut this process: %w", err)
	}
	// S-1-3-4, the owner's rights: without it an owner may change the list.
	d, err := windows.SecurityDescriptorFromString(fmt.Sprintf("D:P(A;;0x%x;;;%s)(A;;0x%x;;;S-1-3-4)(A;;GA;;;SY)", shutRights, user.User.Sid, shutRights))
	if err != nil {
		return fmt.Errorf("shut this process: %w", err)
	}
	list, _, err := d.DACL()
	if err != nil {
		return fmt.Errorf("shut this process: %w", err)
	}
	err = windows.SetSecurityInfo(windows.CurrentProcess(), windows.SE_KERNEL_OBJECT, windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, list, nil)
	if err != nil {
		return fmt.Errorf("shut this process: %w", err)
	}
	return nil
}
