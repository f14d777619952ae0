// Package service has the system start a user's daemon: as a unit of systemd's
// user manager, an agent of launchd, or a task of Windows's Task Scheduler. What
// is written and run is a function of plain data, so that every system's is
// tested on any.
//
// github.com/kardianos/service does not serve here: on Windows it makes services
// of the machine, which have another user's keychain and need a password for this
// one's; its systemd unit for a user is wanted by multi-user.target, which no user
// manager has, and is set up by a template of ours anyway, as launchd's is; and
// its Uninstall ends at the first command that fails and does not say what went.
package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Mark is in every file that Install writes, so that it replaces and removes no
// other.
const Mark = "Written by carrel daemon install"

// Options are what a service is made from.
type Options struct {
	// Daemon is the path of carreld, absolute.
	Daemon string
	// Folder is where the system looks for such files of this user.
	Folder string
	// Env is what the daemon needs of its environment: NAME=VALUE.
	Env []string
	// Log is where its words go where the system keeps none.
	Log string
	// User is the user's name or number, as the system's commands want it.
	User string
}

// Unit is how one system starts the daemon.
type Unit struct {
	// What it is, for people.
	What string
	// File holds Content. The system is told by Start, and by Stop and Forget
	// before and after the file is removed. What fails in Stop and Forget had
	// been done already.
	File, Content       string
	Start, Stop, Forget [][]string
	// Links are files that the system makes beside.
	Links []string
	// Folders are removed with the file if nothing else is in them.
	Folders []string
	// Kept are files of the user's that belong to it, and stay.
	Kept []string
	// Notes are what a person should know of it, a sentence each.
	Notes []string
}

// Runner runs one command and returns what it printed.
type Runner func(ctx context.Context, argv []string) (string, error)

// check refuses what could end a line or a word in any of the formats.
func (o Options) check() error {
	if !filepath.IsAbs(o.Daemon) && !windowsAbs(o.Daemon) {
		return fmt.Errorf("the daemon's path %q is not absolute", o.Daemon)
	}
	for _, s := range append([]string{o.Daemon, o.Folder, o.Log, o.User}, o.Env...) {
		if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }) {
			return fmt.Errorf("%q has a character that no such file can hold (install Carrel in a folder with an ordinary name)", s)
		}
	}
	for _, e := range o.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return fmt.Errorf("%q is no variable", e)
		}
	}
	return nil
}

func windowsAbs(p string) bool {
	return len(p) > 3 && p[1] == ':' && (p[2] == '\\' || p[2] == '/')
}

// Install writes the file and tells the system. If the system refuses, what was
// there before is there again.
func (u Unit) Install(ctx context.Context, run Runner) error {
	old, err := u.ours()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(u.File), 0o755); err != nil {
		return fmt.Errorf("install the %s: %w", u.What, err)
	}
	if err := replace(u.File, u.Content); err != nil {
		return fmt.Errorf("install the %s: %w", u.What, err)
	}
	for _, argv := range u.Start {
		out, err := run(ctx, argv)
		if err == nil {
			continue
		}
		err = fmt.Errorf("install the %s: %s: %w: %s", u.What, strings.Join(argv, " "), err, brief(out))
		if old == nil {
			u.tell(context.WithoutCancel(ctx), run, u.Stop)
			os.Remove(u.File)
			u.tell(context.WithoutCancel(ctx), run, u.Forget)
		} else if rerr := replace(u.File, string(old)); rerr != nil {
			err = errors.Join(err, rerr)
		}
		return err
	}
	return nil
}

// Uninstall tells the system, removes the file, and returns what is gone.
func (u Unit) Uninstall(ctx context.Context, run Runner) (removed []string, err error) {
	old, err := u.ours()
	if err != nil {
		return nil, err
	}
	var there []string
	for _, l := range u.Links {
		if _, err := os.Lstat(l); err == nil {
			there = append(there, l)
		}
	}
	if old == nil && len(there) == 0 {
		return nil, nil
	}
	said := u.tell(ctx, run, u.Stop)
	if old != nil {
		if err := os.Remove(u.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("uninstall the %s: %w", u.What, err)
		}
		removed = append(removed, u.File)
	}
	for _, l := range there {
		if err := os.Remove(l); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, fmt.Errorf("uninstall the %s: %w", u.What, err)
		}
		removed = append(removed, l)
	}
	for _, dir := range u.Folders {
		os.Remove(dir) // fails where something is in it
	}
	u.tell(ctx, run, u.Forget)
	return removed, said
}

// tell runs commands that may have been run before, and returns what the first
// one that failed said.
func (u Unit) tell(ctx context.Context, run Runner, commands [][]string) (first error) {
	for _, argv := range commands {
		if out, err := run(ctx, argv); err != nil && first == nil {
			first = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, brief(out))
		}
	}
	return first
}

// Left returns those of the user's own files that belong to the unit and stay.
func (u Unit) Left() (left []string) {
	for _, k := range u.Kept {
		if _, err := os.Lstat(k); err == nil {
			left = append(left, k)
		}
	}
	return left
}

// maxFile bounds what is read of a file that may be ours, in bytes.
const maxFile = 64 << 10

// ours returns the file's content, nil if there is none, and an error if it is
// somebody else's.
func (u Unit) ours() ([]byte, error) {
	fi, err := os.Lstat(u.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for the %s: %w", u.What, err)
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return nil, fmt.Errorf("%s is not a file that Carrel wrote: move it away first", u.File)
	}
	b, err := os.ReadFile(u.File)
	if err != nil {
		return nil, fmt.Errorf("look for the %s: %w", u.What, err)
	}
	if !strings.Contains(strings.ReplaceAll(string(b), "\x00", ""), Mark) {
		return nil, fmt.Errorf("%s was not written by Carrel: move it away first", u.File)
	}
	return b, nil
}

// replace writes a file at once: the system sees the old one or the new one.
func replace(name, content string) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".carrel-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// brief keeps the first words of what a command printed.
func brief(out string) string {
	out = strings.Join(strings.Fields(out), " ")
	if len(out) > 300 {
		out = out[:300] + "..."
	}
	return strings.ToValidUTF8(out, "?")
}
