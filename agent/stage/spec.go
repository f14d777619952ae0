package stage

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// MaxSpec is the largest encoded Spec, in bytes: a whole frame of the wire and
// the agent's own additions to it.
const MaxSpec = 1<<20 + 64<<10

// Spec is what the stage does, and then becomes.
type Spec struct {
	// User says whether to take on UID, GID and Groups.
	User     bool
	UID, GID uint32
	Groups   []uint32
	// Dir is the working directory, entered as the user. If it cannot be
	// entered and DirOptional is set, "/" is taken instead.
	Dir         string
	DirOptional bool
	// Argv is the command. Argv[0] without a slash is looked up in the PATH
	// of Env, as the user.
	Argv, Env []string
	// Rlimits are set before the user changes.
	Rlimits []Rlimit
	// NoNewPrivs makes set-uid bits and file capabilities of no effect.
	NoNewPrivs bool
	// Seccomp names the system call filter; see [Filter].
	Seccomp Filter
	// Parent, if not 0, is the process whose end must end the task too.
	Parent int
}

// Rlimit is one resource limit, by the kernel's number.
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// Filter is a choice of system calls that a task is refused.
type Filter uint8

const (
	// FilterNone is no filter.
	FilterNone Filter = iota
	// FilterRoot is for tasks of the guest's root: what reaches the host's
	// side without the agent, or replaces the kernel.
	FilterRoot
	// FilterUser is for everyone else: that, and what has no use in a task
	// but has often been the way to a kernel's privileges.
	FilterUser
)

var errSpec = errors.New("malformed task description")

// Encode returns s in the form that Decode reads: fields ended by NUL, each
// list preceded by its length. No argument or variable can hold a NUL.
func (s *Spec) Encode() ([]byte, error) {
	var b []byte
	num := func(n uint64) { b = append(strconv.AppendUint(b, n, 10), 0) }
	flag := func(f bool) {
		if f {
			num(1)
		} else {
			num(0)
		}
	}
	bad := false
	str := func(t string) {
		bad = bad || strings.IndexByte(t, 0) >= 0
		b = append(append(b, t...), 0)
	}
	strs := func(l []string) {
		num(uint64(len(l)))
		for _, t := range l {
			str(t)
		}
	}
	flag(s.User)
	num(uint64(s.UID))
	num(uint64(s.GID))
	num(uint64(len(s.Groups)))
	for _, g := range s.Groups {
		num(uint64(g))
	}
	str(s.Dir)
	flag(s.DirOptional)
	strs(s.Argv)
	strs(s.Env)
	num(uint64(len(s.Rlimits)))
	for _, l := range s.Rlimits {
		num(uint64(l.Resource))
		num(l.Soft)
		num(l.Hard)
	}
	flag(s.NoNewPrivs)
	num(uint64(s.Seccomp))
	num(uint64(s.Parent))
	switch {
	case bad:
		return nil, errors.New("an argument, a variable or the working directory holds a NUL byte")
	case len(b) > MaxSpec:
		return nil, fmt.Errorf("arguments and environment take %d bytes, %d is the limit", len(b), MaxSpec)
	}
	return b, nil
}

// Decode reads what Encode wrote, and checks every length in it.
func Decode(b []byte) (*Spec, error) {
	var err error
	str := func() string {
		i := bytes.IndexByte(b, 0)
		if i < 0 {
			err, b = errSpec, nil
			return ""
		}
		t := string(b[:i])
		b = b[i+1:]
		return t
	}
	num := func(most uint64) uint64 {
		n, e := strconv.ParseUint(str(), 10, 64)
		if e != nil || n > most {
			err = errSpec
			return 0
		}
		return n
	}
	// Every element takes at least its NUL, so a count beyond what is left
	// is refused before it sizes anything.
	count := func() int { return int(num(uint64(len(b)))) }
	strs := func() []string {
		var l []string
		for n := count(); n > 0 && err == nil; n-- {
			l = append(l, str())
		}
		return l
	}
	const max32 = 1<<32 - 1
	s := &Spec{User: num(1) == 1, UID: uint32(num(max32)), GID: uint32(num(max32))}
	for n := count(); n > 0 && err == nil; n-- {
		s.Groups = append(s.Groups, uint32(num(max32)))
	}
	s.Dir, s.DirOptional = str(), num(1) == 1
	s.Argv, s.Env = strs(), strs()
	for n := count(); n > 0 && err == nil; n-- {
		s.Rlimits = append(s.Rlimits, Rlimit{int(num(64)), num(1<<64 - 1), num(1<<64 - 1)})
	}
	s.NoNewPrivs, s.Seccomp, s.Parent = num(1) == 1, Filter(num(uint64(FilterUser))), int(num(1<<31-1))
	if err == nil && (len(b) != 0 || len(s.Argv) == 0) {
		err = errSpec
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}
