//go:build linux && carrelmac

package seatbelt

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// KernelPath is the path that macOS' kernel would have for a file of this host:
// some of its folders are links into /private there.
func KernelPath(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	for _, l := range links {
		if within(real, l) {
			return "/private" + real, nil
		}
	}
	return real, nil
}

// KernelFolder is KernelPath of a folder that has to be the very one that was
// granted.
func KernelFolder(path string, dev, ino uint64) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if st := fi.Sys().(*syscall.Stat_t); st.Dev != dev || st.Ino != ino {
		return "", &os.PathError{Op: "open", Path: path, Err: errReplaced}
	}
	return KernelPath(path)
}

// StandIn is what a profile of a Process lets it do, as what stands in for
// sandbox-exec in tests on Linux reads it: by the text alone, in this host's
// paths.
type StandIn struct {
	Read, Write, Exec, Listen []string
	Dial                      bool
}

// ReadProfile reads a profile for the stand-in.
func ReadProfile(profile string) (s StandIn, err error) {
	forms, err := lintForms(profile, lintOwn)
	if err != nil {
		return s, err
	}
	here := func(at string) string {
		for _, l := range links {
			if within(at, "/private"+l) {
				return at[len("/private"):]
			}
		}
		return at
	}
	for _, f := range forms[2:] {
		if f.head() != "allow" {
			continue
		}
		ops := map[string]bool{}
		for _, e := range f.of[1:] {
			if e.kind == symbol {
				ops[e.word] = true
				continue
			}
			at := ""
			switch e.head() {
			case "literal", "subpath":
				at = here(e.of[1].word)
			case "local":
				if e.of[1].word == "unix-socket" {
					s.Listen = append(s.Listen, here(e.of[2].of[1].word))
				}
				continue
			case "remote":
				s.Dial = true
				continue
			default:
				continue
			}
			switch {
			case at == "/": // for dyld
			case ops["file-write*"]:
				s.Write = append(s.Write, at)
			case ops["process-exec*"]:
				s.Exec = append(s.Exec, at)
			case ops["file-read*"]:
				s.Read = append(s.Read, at)
			}
		}
	}
	return s, nil
}

var errReplaced = errors.New("another folder is in its place than the one that was granted")
