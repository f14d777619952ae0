package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// defaultUser is whom a task runs as when the host names nobody. Shares are
// presented as this user's.
const defaultUser = "1000"

// maxUsers bounds what is read of the guest's passwd and group files, in bytes.
const maxUsers = 1 << 20

// account is one user of the guest.
type account struct {
	uid, gid          uint32
	groups            []uint32
	name, home, shell string
}

// lookUp finds a user by name or number in the guest's own files, or USER:GROUP. A
// number that no line has is a user without a name, as chown(1) takes it.
func lookUp(etc fs.FS, who string) (*account, error) {
	if who == "" {
		who = defaultUser
	}
	who, group, hasGroup := strings.Cut(who, ":")
	a, err := lookUpUser(etc, who)
	if err != nil || !hasGroup {
		return a, err
	}
	// A group that is named is the only one, as with docker's --user.
	if a.gid, err = lookUpGroup(etc, group); err != nil {
		return nil, err
	}
	a.groups = []uint32{a.gid}
	return a, nil
}

func lookUpGroup(etc fs.FS, which string) (uint32, error) {
	number, err := strconv.ParseUint(which, 10, 32)
	if err == nil && number != 1<<32-1 {
		return uint32(number), nil
	}
	gid, found := uint32(0), false
	err = eachLine(etc, "group", 4, func(f []string) bool {
		n, e := strconv.ParseUint(f[2], 10, 32)
		if e != nil || f[0] != which {
			return true
		}
		gid, found = uint32(n), true
		return false
	})
	if err == nil && !found {
		err = fmt.Errorf("the guest has no group %.64q (its /etc/group names them)", which)
	}
	return gid, err
}

func lookUpUser(etc fs.FS, who string) (*account, error) {
	a := &account{home: "/", shell: "/bin/sh"}
	found := false
	number, err := strconv.ParseUint(who, 10, 32)
	isNumber := err == nil && number != 1<<32-1 // -1 means "leave as it is" to setresuid
	err = eachLine(etc, "passwd", 7, func(f []string) bool {
		uid, e1 := strconv.ParseUint(f[2], 10, 32)
		gid, e2 := strconv.ParseUint(f[3], 10, 32)
		if e1 != nil || e2 != nil || (f[0] != who && (!isNumber || uid != number)) {
			return true
		}
		found = true
		a.name, a.uid, a.gid = f[0], uint32(uid), uint32(gid)
		if strings.HasPrefix(f[5], "/") {
			a.home = f[5]
		}
		if strings.HasPrefix(f[6], "/") {
			a.shell = f[6]
		}
		return false
	})
	switch {
	case err != nil:
		return nil, err
	case !found && !isNumber:
		return nil, fmt.Errorf("the guest has no user %.64q (its /etc/passwd names them)", who)
	case !found:
		a.uid, a.gid, a.name = uint32(number), uint32(number), who
	}
	a.groups = []uint32{a.gid}
	err = eachLine(etc, "group", 4, func(f []string) bool {
		gid, e := strconv.ParseUint(f[2], 10, 32)
		if e != nil || uint32(gid) == a.gid || !found {
			return true
		}
		for m := range strings.SplitSeq(f[3], ",") {
			// 32 is far below the kernel's 65536, and more than anyone has.
			if m == a.name && len(a.groups) < 32 {
				a.groups = append(a.groups, uint32(gid))
			}
		}
		return true
	})
	return a, err
}

// eachLine calls f with the fields of each well-formed line until it returns
// false. A missing file has no lines.
func eachLine(etc fs.FS, name string, fields int, f func([]string) bool) error {
	file, err := etc.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("/etc/%s of the guest is not a regular file", name)
	}
	lines := bufio.NewScanner(io.LimitReader(file, maxUsers))
	for lines.Scan() {
		if l := strings.Split(lines.Text(), ":"); len(l) == fields && !f(l) {
			return nil
		}
	}
	return lines.Err()
}

// etc is the guest's /etc.
func etc() fs.FS { return os.DirFS("/etc") }
