package hypervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
)

func good() Config {
	return Config{
		Name: "quiet-otter", Dir: "/d", Kernel: "/k", Initrd: "/i", Root: "/r", CPUs: 2, MemoryMiB: 2048,
		Shares: []Share{{Tag: "share0", Path: "/home/u/a"}, {Tag: "share1", Path: "/home/u/b"}},
	}
}

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string // empty: good
	}{
		"good":            {func(*Config) {}, ""},
		"windows":         {func(c *Config) { c.Dir, c.Kernel, c.Initrd, c.Root = `C:\d`, `C:\k`, `C:\i`, `C:\r` }, ""},
		"smallest":        {func(c *Config) { c.CPUs, c.MemoryMiB, c.Shares = 1, MinMemoryMiB, nil }, ""},
		"largest":         {func(c *Config) { c.CPUs, c.MemoryMiB = MaxCPUs, MaxMemoryMiB }, ""},
		"zero":            {func(c *Config) { *c = Config{} }, "name"},
		"bad name":        {func(c *Config) { c.Name = "a/b" }, "name"},
		"no CPU":          {func(c *Config) { c.CPUs = 0 }, "0 CPUs"},
		"negative CPUs":   {func(c *Config) { c.CPUs = -1 }, "-1 CPUs"},
		"many CPUs":       {func(c *Config) { c.CPUs = MaxCPUs + 1 }, "65 CPUs"},
		"no memory":       {func(c *Config) { c.MemoryMiB = 0 }, "0 MiB"},
		"little memory":   {func(c *Config) { c.MemoryMiB = MinMemoryMiB - 1 }, "127 MiB"},
		"much memory":     {func(c *Config) { c.MemoryMiB = MaxMemoryMiB + 1 }, "MiB"},
		"no kernel":       {func(c *Config) { c.Kernel = "" }, "absolute"},
		"relative initrd": {func(c *Config) { c.Initrd = "i" }, "absolute"},
		"relative root":   {func(c *Config) { c.Root = "./r" }, "absolute"},
		"relative dir":    {func(c *Config) { c.Dir = "d" }, "absolute"},
		"wrong tag":       {func(c *Config) { c.Shares[1].Tag = "share0" }, "want share1"},
	} {
		c := good()
		tc.change(&c)
		err := c.Check()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "0": true, "quiet-otter": true, "a-": true, strings.Repeat("a", 31): true,
		"": false, "-a": false, ".": false, "..": false, "a.b": false, "a/b": false, `a\b`: false, "A": false, "a b": false,
		"a\x00": false, "a\n": false, "é": false, "a,b": false, "a=b": false, strings.Repeat("a", 32): false,
	} {
		if ValidName(name) != want {
			t.Errorf("%q: valid %t", name, !want)
		}
	}
}

func TestErrors(t *testing.T) {
	err := error(&Error{Op: "start qemu", Err: fmt.Errorf("open it: %w", fs.ErrNotExist), Cure: "make image"})
	if got := err.Error(); got != "start qemu: open it: file does not exist (make image)" {
		t.Error(got)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the cause is lost")
	}
	if got := (&Error{Op: "start", Err: ErrGone}).Error(); got != "start: the guest is gone" {
		t.Error(got)
	}
	if got := (&GoneError{Cause: "qemu ended with status 1", Detail: "no"}).Error(); got != "qemu ended with status 1: no" {
		t.Error(got)
	}
	if got := (&GoneError{Cause: "qemu ended with status 1"}).Error(); got != "qemu ended with status 1" {
		t.Error(got)
	}
}
