package place

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

// Windows' pipes are not files: they have names in a space that all users share,
// and whoever makes a name first has it. So what lies at a socket's path is a
// file that holds the pipe's name, which is random: nobody can make it before
// us. The file is the user's, as is the folder; what a client then finds at the
// other end of the pipe is checked all the same.
const (
	pipePrefix = `\\.\pipe\carrel-`
	pipeRandom = 16 // bytes
	// pipeBuffer is what one direction holds before a writer waits, in bytes.
	pipeBuffer = 64 << 10
)

// Listen makes a named pipe that only this user and SYSTEM may open, and notes
// its name at path. The caller holds the lock that says that nobody else listens
// there. Close removes the note.
func Listen(path string) (net.Listener, error) {
	if fi, err := os.Lstat(path); err == nil && !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is in the way: it is not a file (remove it)", path)
	}
	name, err := PipeName()
	if err != nil {
		return nil, err
	}
	ln, err := ListenPipe(name)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(path+".new", []byte(name), 0o600), os.Rename(path+".new", path)); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return &noted{Listener: ln, path: path, name: name}, nil
}

// noted is a listener whose name is in a file.
type noted struct {
	net.Listener
	path, name string
	once       sync.Once
}

// Close ends the pipe. It may be called twice.
func (n *noted) Close() error {
	n.once.Do(func() {
		if name, err := readName(n.path); err == nil && name == n.name {
			os.Remove(n.path)
		}
	})
	return n.Listener.Close()
}

// PipeName returns the name of a pipe that nobody else can have made.
func PipeName() (string, error) {
	var b [pipeRandom]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return pipePrefix + hex.EncodeToString(b[:]), nil
}

// ListenPipe makes the first instance of a named pipe; a name that is there
// already is an error. Nobody but this user and SYSTEM may open it, and nobody
// from another machine.
func ListenPipe(name string) (net.Listener, error) {
	user, err := ownUser()
	if err != nil {
		return nil, err
	}
	// The owner is named: that of an administrator's process would be the group.
	ln, err := winio.ListenPipe(name, &winio.PipeConfig{
		SecurityDescriptor: "O:" + user + "D:P(A;;FA;;;SY)(A;;FA;;;" + user + ")",
		InputBufferSize:    pipeBuffer, OutputBufferSize: pipeBuffer,
	})
	if err != nil {
		return nil, fmt.Errorf("make a named pipe: %w", err)
	}
	return ln, nil
}

// ownUser is the SID of who runs this process, in its text form.
func ownUser() (string, error) {
	u, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return "", fmt.Errorf("find out who runs this: %w", err)
	}
	return u.User.Sid.String(), nil
}

// readName reads what Listen wrote.
func readName(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var b [len(pipePrefix) + 2*pipeRandom + 1]byte
	n, err := f.Read(b[:])
	if err != nil {
		return "", fmt.Errorf("%s holds no pipe's name: %w", path, err)
	}
	name := string(b[:n])
	random, ok := strings.CutPrefix(name, pipePrefix)
	if _, err := hex.DecodeString(random); !ok || err != nil || len(random) != 2*pipeRandom {
		return "", fmt.Errorf("%s holds no pipe's name (remove it)", path)
	}
	return name, nil
}

// Dial connects to the pipe whose name is noted at path, and says nothing to one
// that another user made (a Stranger). The other end learns nothing but our
// number: it may not act as us (SECURITY_ANONYMOUS, by go-winio). A pipe that is
// gone is fs.ErrNotExist, as is a note that is not there.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	name, err := readName(path)
	if err != nil {
		return nil, err
	}
	c, err := winio.DialPipeContext(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("the pipe noted in %s: %w", path, err)
	}
	if err := checkMaker(c); err != nil {
		c.Close()
		return nil, &Stranger{err}
	}
	return c, nil
}

// checkMaker returns an error unless the pipe belongs to this user.
func checkMaker(c net.Conn) error {
	h, ok := c.(interface{ Fd() uintptr })
	if !ok {
		return errors.New("the pipe's owner cannot be asked for")
	}
	sd, err := windows.GetSecurityInfo(windows.Handle(h.Fd()), windows.SE_KERNEL_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return fmt.Errorf("find the pipe's owner: %w", err)
	}
	owner, _, err := sd.Owner()
	if err != nil || owner == nil {
		return fmt.Errorf("find the pipe's owner: %v", err)
	}
	own, err := ownUser()
	if err != nil {
		return err
	}
	if got := owner.String(); got != own {
		return fmt.Errorf("the pipe belongs to %s, not to you (%s)", got, own)
	}
	return nil
}

// CheckSocket returns an error unless path is a file of its own, as Listen makes
// it.
func CheckSocket(path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return &fs.PathError{Op: "open", Path: path, Err: errors.New("it is not a file")}
	}
	return nil
}
