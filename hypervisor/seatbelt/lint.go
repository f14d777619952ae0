package seatbelt

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// subject is what a filter is about; an operation takes filters of its subjects.
type subject byte

const (
	aboutNothing subject = iota
	aboutFile
	aboutNetwork
	aboutMach
	aboutSysctl
	aboutIPC
	aboutProcess
	aboutExtension
)

// operation is one that a profile of ours may name.
type operation struct {
	subject subject
	// bare says that it may be allowed without a filter.
	bare bool
}

// operations are those of macOS 26.4 that a profile of ours has a use for, or
// that it may take away. The names come from the profiles that Apple ships in
// /System/Library/Sandbox/Profiles; the older ones of Chromium and Bazel have
// them too. A name that the system does not know stops the launch.
var operations = map[string]operation{
	"default": {},

	"file*": {subject: aboutFile}, "file-clone": {subject: aboutFile}, "file-ioctl": {subject: aboutFile}, "file-link": {subject: aboutFile},
	"file-map-executable": {subject: aboutFile}, "file-mknod": {subject: aboutFile}, "file-mount": {subject: aboutFile},
	"file-read*": {subject: aboutFile}, "file-read-data": {subject: aboutFile}, "file-read-metadata": {subject: aboutFile},
	"file-read-xattr": {subject: aboutFile}, "file-revoke": {subject: aboutFile},
	"file-write*": {subject: aboutFile}, "file-write-create": {subject: aboutFile}, "file-write-data": {subject: aboutFile},
	"file-write-flags": {subject: aboutFile}, "file-write-mode": {subject: aboutFile}, "file-write-owner": {subject: aboutFile},
	"file-write-setugid": {subject: aboutFile}, "file-write-unlink": {subject: aboutFile}, "file-write-xattr": {subject: aboutFile},

	"process-exec*": {subject: aboutFile}, "process-exec": {subject: aboutFile},
	"process-fork": {bare: true}, "process-info*": {subject: aboutProcess}, "signal": {subject: aboutProcess},

	"network*": {subject: aboutNetwork}, "network-bind": {subject: aboutNetwork}, "network-inbound": {subject: aboutNetwork},
	"network-outbound": {subject: aboutNetwork},

	"ipc-posix*": {subject: aboutIPC}, "ipc-posix-sem*": {subject: aboutIPC}, "ipc-posix-shm*": {subject: aboutIPC},
	"mach-lookup": {subject: aboutMach}, "mach-register": {subject: aboutMach},
	"pseudo-tty":  {bare: true},
	"sysctl-read": {subject: aboutSysctl}, "sysctl-write": {subject: aboutSysctl},

	// What lets another process have a file, or a kind of device, that the sandbox
	// of its own would refuse it.
	"file-issue-extension": {subject: aboutExtension}, "generic-issue-extension": {subject: aboutExtension},

	"appleevent-send": {}, "job-creation": {}, "lsopen": {}, "system-socket": {}, "user-preference-read": {},
}

// filter is one that a profile of ours may use: about what, and how its value
// is checked.
type filter struct {
	subject subject
	check   func(args []expr) error
}

// combinators make one filter of others.
var combinators = []string{"require-all", "require-any", "require-not"}

var filters = map[string]filter{
	"literal":               {aboutFile, lintPath},
	"subpath":               {aboutFile, lintSubpath},
	"regex":                 {aboutFile, lintRegex},
	"extension":             {aboutFile, lintName},
	"vnode-type":            {aboutFile, lintWord("BLOCK-DEVICE", "CHARACTER-DEVICE", "DIRECTORY", "FIFO", "REGULAR-FILE", "SOCKET", "SYMLINK", "TTY")},
	"local":                 {subject: aboutNetwork}, // an address: the linter's
	"remote":                {subject: aboutNetwork},
	"global-name":           {aboutMach, lintName},
	"xpc-service-name":      {aboutMach, lintName},
	"extension-class":       {aboutExtension, lintName},
	"sysctl-name":           {aboutSysctl, lintName},
	"sysctl-name-prefix":    {aboutSysctl, lintName},
	"ipc-posix-name":        {aboutIPC, lintName},
	"ipc-posix-name-prefix": {aboutIPC, lintName},
	"target":                {aboutProcess, lintWord("self", "same-sandbox", "children", "others", "pgrp")},
}

// modifiers are those of (with ...) that a rule may have.
var modifiers = []string{"no-log", "no-report", "report"}

// Lint says what is wrong with a profile, or nil. It knows the part of the
// language that profiles of ours use and refuses the rest, and it refuses what
// would make the sandbox wide open by mistake: a default that allows, a rule that
// allows without saying what, an address that is not this machine's.
//
// It is no proof of a profile: it does not know which folders were granted.
func Lint(profile string) error {
	_, err := lintForms(profile, lintAddress)
	return err
}

// lintForms is Lint with what addresses may be, and returns the profile's forms.
func lintForms(profile string, address func([]expr) error) ([]expr, error) {
	forms, err := parse(profile)
	if err != nil {
		return nil, fmt.Errorf("the profile does not parse: %w", err)
	}
	if len(forms) < 2 || !is(forms[0], "version", "1") {
		return nil, errors.New(`the profile does not begin with (version 1)`)
	}
	if !is(forms[1], "deny", "default") {
		return nil, errors.New(`the profile does not deny by default: (deny default) has to come second`)
	}
	l := linter{address}
	var all []error
	for _, f := range forms[2:] {
		if err := l.rule(f); err != nil {
			all = append(all, fmt.Errorf("line %d: %w", f.line, err))
			if len(all) == 10 {
				break
			}
		}
	}
	return forms, errors.Join(all...)
}

// linter checks rules; address is how it checks the address of one.
type linter struct{ address func([]expr) error }

// is says whether e is a list of just these atoms.
func is(e expr, words ...string) bool {
	if e.kind != list || len(e.of) != len(words) {
		return false
	}
	for i, w := range words {
		if k := e.of[i].kind; e.of[i].word != w || k != symbol && k != number {
			return false
		}
	}
	return true
}

// rule checks (allow|deny operation... filter... modifier...).
func (l linter) rule(e expr) error {
	action := e.head()
	if action != "allow" && action != "deny" {
		return fmt.Errorf("a form %.40q, which is neither allow nor deny", action)
	}
	rest := e.of[1:]
	var ops []string
	for len(rest) > 0 && rest[0].kind == symbol {
		ops = append(ops, rest[0].word)
		rest = rest[1:]
	}
	if len(ops) == 0 {
		return errors.New("a rule about no operation")
	}
	filtered := false
	for _, f := range rest {
		if f.head() == "with" {
			if len(f.of) != 2 || f.of[1].kind != symbol || !slices.Contains(modifiers, f.of[1].word) {
				return errors.New("a modifier that is not known")
			}
			continue
		}
		filtered = true
		for _, name := range ops {
			if err := l.filter(f, name); err != nil {
				return err
			}
		}
	}
	for _, name := range ops {
		op, ok := operations[name]
		switch {
		case !ok:
			return fmt.Errorf("an operation %.60q, which is not known", name)
		case name == "default":
			return errors.New("the default is said twice")
		case action == "allow" && !filtered && !op.bare:
			return fmt.Errorf("%s is allowed without saying what", name)
		}
	}
	return nil
}

func (l linter) filter(e expr, op string) error {
	name := e.head()
	if name == "" {
		return errors.New("an expression where a filter should be")
	}
	args := e.of[1:]
	if len(args) == 0 {
		return fmt.Errorf("%.60s without a value", name)
	}
	if slices.Contains(combinators, name) {
		if name == "require-not" && len(args) != 1 {
			return errors.New("require-not of more than one")
		}
		for _, a := range args {
			if err := l.filter(a, op); err != nil {
				return err
			}
		}
		return nil
	}
	f, ok := filters[name]
	if !ok {
		return fmt.Errorf("a filter %.60q, which is not known", name)
	}
	if f.subject != operations[op].subject && (op != "file-issue-extension" || name != "subpath") {
		return fmt.Errorf("%s cannot be filtered by %s", op, name)
	}
	check := f.check
	if f.subject == aboutNetwork {
		check = l.address
	}
	if err := check(args); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// each checks values that have to be strings.
func each(args []expr, check func(string) error) error {
	for _, a := range args {
		if a.kind != text {
			return errors.New("a value that is not a string")
		}
		if err := check(a.word); err != nil {
			return fmt.Errorf("%.200q: %w", a.word, err)
		}
	}
	return nil
}

// lintPath lets the root and the links pass, which can be looked at.
func lintPath(args []expr) error {
	return each(args, func(p string) error {
		if p == "/" || slices.Contains(links, p) {
			return nil
		}
		return checkPath(p)
	})
}

func lintSubpath(args []expr) error { return each(args, checkPath) }

func lintName(args []expr) error {
	return each(args, func(s string) error {
		if len(s) < 3 || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return errors.New("it is no name")
		}
		return nil
	})
}

// lintRegex wants an expression about whole paths beneath a folder that it
// names, and alternatives in parentheses only.
func lintRegex(args []expr) error {
	for _, a := range args {
		if a.kind != regex {
			return errors.New(`a value that is not #"..."`)
		}
		if err := wholePath(a.word); err != nil {
			return fmt.Errorf("%.200q %w (^/folder/...$)", a.word, err)
		}
	}
	return nil
}

func wholePath(s string) error {
	rest, anchored := strings.CutPrefix(s, "^/")
	if !anchored || !strings.HasSuffix(s, "$") || strings.HasSuffix(s, `\$`) {
		return errors.New("is not about a whole path")
	}
	rest = strings.TrimSuffix(rest, "$")
	depth, class, folder := 0, false, 0
	for i := 0; i < len(rest); i++ {
		c := rest[i]
		switch {
		case c == '\\':
			i++
		case class:
			class = c != ']'
		case c == '[':
			class = true
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == '/' && folder == 0:
			folder = i
		case c == '|' && depth < 1:
			return errors.New("has alternatives, one of which is not about a whole path")
		}
		if folder == 0 && strings.IndexByte(`*+?()[]{}|^$.`, c) >= 0 {
			return errors.New("does not name a folder")
		}
		if depth < 0 {
			return errors.New("has a parenthesis too many")
		}
	}
	if folder == 0 || depth != 0 || class {
		return errors.New("does not name a folder")
	}
	return nil
}

func lintWord(words ...string) func([]expr) error {
	return func(args []expr) error {
		for _, a := range args {
			if a.kind != symbol || !slices.Contains(words, a.word) {
				return fmt.Errorf("%.60q is none of %s", a.word, strings.Join(words, ", "))
			}
		}
		return nil
	}
}

// lintAddress wants one TCP port of this machine. The kernel's own compiler
// knows no other host than this one and all.
func lintAddress(args []expr) error {
	if len(args) != 2 || args[0].kind != symbol || args[0].word != "tcp" || args[1].kind != text {
		return errors.New(`it is not of the form tcp "localhost:PORT"`)
	}
	port, ok := strings.CutPrefix(args[1].word, "localhost:")
	n, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return fmt.Errorf("%.60q is not of the form localhost:PORT", args[1].word)
	}
	return nil
}

// ownAddresses are those that a profile of a process of Carrel may name, beside
// a Unix socket by its path. To a local end "localhost" is every address of the
// machine: which of them a port is opened on is that process's own affair.
var ownAddresses = []string{`tcp "*:*"`, `udp "*:*"`, `tcp "localhost:*"`}

// lintOwn wants one of them, or unix-socket (literal "/path").
func lintOwn(args []expr) error {
	if len(args) != 2 || args[0].kind != symbol {
		return errors.New("it is no address that is known")
	}
	if args[0].word == "unix-socket" {
		if args[1].head() != "literal" || len(args[1].of) != 2 {
			return errors.New(`it is not of the form unix-socket (literal "/path")`)
		}
		return lintSubpath(args[1].of[1:])
	}
	if args[1].kind != text || !slices.Contains(ownAddresses, args[0].word+` "`+args[1].word+`"`) {
		return fmt.Errorf("%.60q is no address that is known", args[1].word)
	}
	return nil
}
