package machine

import "bytes"

// This package has helpers that the standard library has, too, in packages that
// are set up late; doc.go says why that matters.

// failure is an error with what was tried; fmt's would be another package to wait
// for.
type failure struct {
	what string
	err  error
}

func failed(what string, err error) error { return &failure{what, err} }

func (f *failure) Error() string { return f.what + ": " + f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// clip bounds a name that is shown, in bytes.
func clip(s string, n int) string { return s[:min(len(s), n)] }

// begins says whether s begins with prefix.
func begins(s, prefix string) bool { return len(s) >= len(prefix) && s[:len(prefix)] == prefix }

// base is what comes after the last slash.
func base(path string) string { return path[bytes.LastIndexByte([]byte(path), '/')+1:] }
