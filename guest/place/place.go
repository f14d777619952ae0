// Package place says where Carrel keeps its things, so that the daemon, the
// keepers and every client look in the same folders.
package place

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// maxSocket is the longest path that we give a socket, in bytes: sun_path holds
// 108 on Linux and 104 on macOS (unix(7), sys/un.h), with a zero at its end.
const maxSocket = 100

// socketName is short because every byte of it counts towards maxSocket.
const socketName = "d.sock"

// Place is where one user's Carrel lives. Every path is absolute; nothing has
// been created yet.
type Place struct {
	// Home is CARREL_HOME, or empty where the platform's usual folders are used.
	Home string
	// State holds guests, tasks, logs: what must outlive a restart.
	State string
	// Config holds policy.yaml.
	Config string
	// Cache holds images and kernels, which can be made again.
	Cache string
	// Run holds sockets. It must pass MakePrivate before it is used.
	Run string
	// Socket is the daemon's, in Run; at most 100 bytes.
	Socket string
}

// Home returns the places that the environment asks for: the folders beneath
// CARREL_HOME, or the platform's usual ones. CARREL_CACHE moves the cache alone.
func Home() (Place, error) {
	return At(os.Getenv("CARREL_HOME"))
}

// At is Home with home in the place of CARREL_HOME. Empty means the platform's
// usual folders.
func At(home string) (Place, error) {
	var p Place
	if home != "" {
		if !filepath.IsAbs(home) {
			// The daemon has another working directory than its caller.
			return p, fmt.Errorf("CARREL_HOME is %q: it must be an absolute path", home)
		}
		home = filepath.Clean(home)
		p = Place{
			Home:   home,
			State:  filepath.Join(home, "state"),
			Config: filepath.Join(home, "config"),
			Cache:  filepath.Join(home, "cache"),
			Run:    filepath.Join(home, "run"),
		}
	} else {
		var err error
		if p, err = usual(); err != nil {
			return Place{}, err
		}
	}
	if c := os.Getenv("CARREL_CACHE"); c != "" {
		if !filepath.IsAbs(c) {
			return Place{}, fmt.Errorf("CARREL_CACHE is %q: it must be an absolute path", c)
		}
		p.Cache = filepath.Clean(c)
	}
	p.Socket = filepath.Join(p.Run, socketName)
	if len(p.Socket) > maxSocket {
		p.Run = shortRun(p.Run)
		p.Socket = filepath.Join(p.Run, socketName)
	}
	if len(p.Socket) > maxSocket {
		return Place{}, fmt.Errorf("the socket's path %q has more than %d bytes: set CARREL_HOME to a shorter folder", p.Socket, maxSocket)
	}
	return p, nil
}

// Env returns the variables that make another process find the same places.
func (p Place) Env() []string {
	env := []string{"CARREL_CACHE=" + p.Cache}
	if p.Home != "" {
		env = append(env, "CARREL_HOME="+p.Home)
	}
	return env
}

// shortRun returns a short folder that stands for the runtime folder long. Its
// name is bound to long, so that two homes never share a socket.
func shortRun(long string) string {
	sum := sha256.Sum256([]byte(long))
	id := hex.EncodeToString(sum[:4])
	uid := os.Getuid() // -1 on Windows
	if dir := filepath.Join("/run/user", strconv.Itoa(uid)); CheckPrivate(dir) == nil {
		return filepath.Join(dir, "carrel-"+id)
	}
	return filepath.Join(shortTemp(), fmt.Sprintf("carrel-%d-%s", uid, id))
}

// absEnv returns the folder that the variable name holds. The XDG base
// directory specification says to ignore a relative one.
func absEnv(name string) string {
	if v := os.Getenv(name); filepath.IsAbs(v) {
		return filepath.Clean(v)
	}
	return ""
}

// MakePrivate creates dir, and its parents, so that only this user may enter
// it. A dir that exists already must pass CheckPrivate: it is never mended,
// because whoever could open it to others may have put something in it.
func MakePrivate(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("make private folder: %w", err)
	}
	if err := mkdirPrivate(dir); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make private folder: %w", err)
	}
	return CheckPrivate(dir)
}

// CheckPrivate returns an error unless dir is a folder, not a link, that
// belongs to this user and that nobody else may enter.
func CheckPrivate(dir string) error {
	fi, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return fmt.Errorf("%s is not a folder: remove it", dir)
	}
	return checkOwner(dir, fi)
}
