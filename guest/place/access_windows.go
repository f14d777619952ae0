package place

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Windows has no modes: who may open a file is said by its access list, and what
// is made in a folder takes over that folder's. So a private folder gets a list
// of its own, which what lies above cannot add to, and each is looked at again
// before it is used: a home that was chosen outside of the user's profile may be
// open to all who log in.

// ours are those who may be in such a list beside the user: the system and the
// administrators, who may enter everything anyway, and whoever owns a file.
var ours = []string{"S-1-5-18", "S-1-5-32-544", "S-1-3-0", "S-1-3-4"}

// looks are the rights that give away nothing of what a file holds.
const looks = windows.READ_CONTROL | windows.SYNCHRONIZE | windows.FILE_READ_ATTRIBUTES | windows.FILE_READ_EA

// mkdirPrivate makes one folder that only this user may enter, beside the system
// and the administrators.
func mkdirPrivate(dir string) error {
	user, err := ownUser()
	if err != nil {
		return err
	}
	sd, err := windows.SecurityDescriptorFromString("O:" + user + "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;" + user + ")")
	if err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return err
	}
	sa := &windows.SecurityAttributes{SecurityDescriptor: sd}
	sa.Length = uint32(unsafe.Sizeof(*sa))
	if err := windows.CreateDirectory(name, sa); err != nil {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	return nil
}

func checkOwner(dir string, _ fs.FileInfo) error {
	sd, err := windows.GetNamedSecurityInfo(dir, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return fmt.Errorf("%s: find out who may enter it: %w", dir, err)
	}
	return onlyOurs(dir, sd)
}

// CheckFile returns an error unless f belongs to this user, the administrators or
// the system, and nobody else may open it.
func CheckFile(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var sd *windows.SECURITY_DESCRIPTOR
	cerr := c.Control(func(fd uintptr) {
		sd, err = windows.GetSecurityInfo(windows.Handle(fd), windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	})
	if err := errors.Join(cerr, err); err != nil {
		return fmt.Errorf("%s: find out who may open it: %w", f.Name(), err)
	}
	return onlyOurs(f.Name(), sd)
}

// onlyOurs judges an owner and an access list.
func onlyOurs(path string, sd *windows.SECURITY_DESCRIPTOR) error {
	user, err := ownUser()
	if err != nil {
		return err
	}
	owner, _, err := sd.Owner()
	if err != nil || owner == nil {
		return fmt.Errorf("%s: its owner is unknown (%v)", path, err)
	}
	if o := owner.String(); o != user && o != ours[0] && o != ours[1] {
		return fmt.Errorf("%s belongs to %s, not to you (%s): another user may have made it in your way; remove it, or set CARREL_HOME", path, called(owner), user)
	}
	list, _, err := sd.DACL()
	if err != nil || list == nil {
		return fmt.Errorf("%s has no access list, so that everybody may open it (%v): look at what is in it, then `icacls \"%s\" /reset`", path, err, path)
	}
	for i := range uint32(list.AceCount) {
		var e *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(list, i, &e); err != nil {
			return fmt.Errorf("%s: its access list: %w", path, err)
		}
		switch e.Header.AceType {
		case windows.ACCESS_DENIED_ACE_TYPE:
			continue
		case windows.ACCESS_ALLOWED_ACE_TYPE:
		default:
			return fmt.Errorf("%s: its access list has an entry of kind %d, which is not known here: `icacls \"%s\" /reset` takes such entries away", path, e.Header.AceType, path)
		}
		who := (*windows.SID)(unsafe.Pointer(&e.SidStart))
		if e.Mask&^looks == 0 || who.String() == user || slices.Contains(ours, who.String()) {
			continue
		}
		return fmt.Errorf("%s can be opened by %s: look at what is in it, then `icacls \"%s\" /inheritance:r /remove:g *%s /grant:r *%s:F`", path, called(who), path, who, user)
	}
	return nil
}

// called is a name for whom a list names, and the number that it goes by.
func called(who *windows.SID) string {
	name, domain, _, err := who.LookupAccount("")
	if err != nil {
		return who.String()
	}
	return fmt.Sprintf("%.100q (%s)", domain+`\`+name, who)
}
