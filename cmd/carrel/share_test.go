package main

import (
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/hypervisor"
)

// drive is where the paths of these tests are on Windows.
var drive = map[bool]string{true: "C:"}[runtime.GOOS == "windows"]

func TestParseShare(t *testing.T) {
	const ro, rw, review = api.ShareMode_SHARE_MODE_RO, api.ShareMode_SHARE_MODE_RW, api.ShareMode_SHARE_MODE_REVIEW
	for _, tc := range []struct {
		arg, path, guest string
		mode             api.ShareMode
		err              string
	}{
		{".", "/cwd", "", review, ""},
		{"./sub/../x", "/cwd/x", "", review, ""},
		{"../up", "/up", "", review, ""},
		{"/a", "/a", "", review, ""},
		{"/a:ro", "/a", "", ro, ""},
		{"/a:rw", "/a", "", rw, ""},
		{"/a:/b", "/a", "/b", review, ""},
		{"/a:/b/../c:rw", "/a", "/c", rw, ""},
		{".:/work:ro", "/cwd", "/work", ro, ""},
		{"/a:review", "/a", "", review, ""},
		{"/a:rw-nodelete", "/a", "", api.ShareMode_SHARE_MODE_RW_NODELETE, ""},
		{"/a:ro,plain", "/a", "", ro, ""},
		{"/a:/b:rw,plain", "/a", "/b", rw, ""},
		{"/a:/b,plain", "/a", "/b,plain", review, ""}, // a place in the guest
		{"ro", "/cwd/ro", "", review, ""},             // a folder may have that name
		{"/ä b", "/ä b", "", review, ""},

		{"", "", "", 0, "missing"},
		{":rw", "", "", 0, "missing"},
		{"/a:", "", "", 0, "neither a mode"},
		{"/a:plain", "", "", 0, "neither a mode"},
		{"/a:,plain", "", "", 0, "neither a mode"},
		{"/a:ro,Plain", "", "", 0, "neither a mode"},
		{"/a:ro,plain,plain", "", "", 0, "neither a mode"},
		{"/a:RW", "", "", 0, "neither a mode"},
		{"/a:rx", "", "", 0, "neither a mode"},
		{"/a:b", "", "", 0, "neither a mode"},
		{"/a:b:rw", "", "", 0, "not absolute"},
		{"/a:rw:/b", "", "", 0, "too many colons"},
		{"/a:/b:/c:rw", "", "", 0, "too many colons"},
		{"/a\x00b", "", "", 0, "control character"},
		{"/a\nb:rw", "", "", 0, "control character"},
		{"/a:/b\x1b[2J", "", "", 0, "control character"},
		{strings.Repeat("a", 20_000), "", "", 0, "too long"},
	} {
		if strings.HasPrefix(tc.arg, "/") {
			tc.arg = drive + tc.arg
		}
		s, err := parseShare(tc.arg, filepath.FromSlash(drive+"/cwd"))
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%.40q: %v, want %q", tc.arg, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tc.arg, err)
			continue
		}
		if s.Path != filepath.FromSlash(drive+tc.path) || s.GuestPath != tc.guest || s.Mode != tc.mode || s.Plain != (strings.HasSuffix(tc.arg, ",plain") && s.GuestPath != "/b,plain") {
			t.Errorf("%q: %v", tc.arg, s)
		}
	}
}

// A path that no request can hold is refused with its name and what can be done, and
// not by the encoding of the request.
func TestNotUTF8(t *testing.T) {
	bad := filepath.FromSlash(drive + "/a\xff")
	for what, err := range map[string]error{
		"a share":         second(parseShare(bad, filepath.FromSlash(drive+"/cwd"))),
		"beneath cwd":     second(parseShare("b", bad)),
		"as in the guest": second(parseShare(filepath.FromSlash(drive+"/a")+":/b\xff", filepath.FromSlash(drive+"/cwd"))),
		"a path":          second(hostPath(bad)),
	} {
		if err == nil || !strings.Contains(err.Error(), `\xff`) || !strings.Contains(err.Error(), `" is not UTF-8`) || !strings.Contains(err.Error(), "rename it") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := hostPath(filepath.FromSlash(drive + "/ä")); err != nil {
		t.Errorf("control: %v", err)
	}
}

func second[A any](_ A, err error) error { return err }

// No processors are not the usual number of them.
func TestNoCPUs(t *testing.T) {
	for _, tc := range []struct {
		args []string
		err  string
	}{
		{[]string{"--no-share", "--cpus", "0"}, "--cpus 0: between 1 and 64 are possible"},
		{[]string{"--no-share", "--cpus", "1"}, ""},
		{[]string{"--no-share"}, ""},
	} {
		var f specFlags
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		f.add(fs)
		if err := fs.Parse(tc.args); err != nil {
			t.Fatal(err)
		}
		_, _, err := f.spec()
		if (err == nil) != (tc.err == "") || err != nil && err.Error() != tc.err {
			t.Errorf("%q: %v", tc.args, err)
		}
	}
	if maxCPUs != hypervisor.MaxCPUs {
		t.Errorf("%d are said to be possible, and %d are", maxCPUs, hypervisor.MaxCPUs)
	}
}

func FuzzParseShare(f *testing.F) {
	for _, s := range []string{".", "/a:/b:rw", "/a:ro", "/a:rw,plain", "/a:rw-nodelete", ":", "a:b:c:d", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, arg string) {
		s, err := parseShare(arg, filepath.FromSlash(drive+"/cwd"))
		if err != nil {
			if len(err.Error()) > 8*len(arg)+400 {
				t.Errorf("an error of %d bytes for %d", len(err.Error()), len(arg))
			}
			return
		}
		switch {
		case !filepath.IsAbs(s.Path) || filepath.Clean(s.Path) != s.Path:
			t.Errorf("path %q", s.Path)
		case s.GuestPath != "" && !strings.HasPrefix(s.GuestPath, "/"):
			t.Errorf("guest path %q", s.GuestPath)
		case s.Plain && !strings.HasSuffix(arg, ",plain"):
			t.Errorf("%q has no rules, which nobody asked for", arg)
		case s.Mode == api.ShareMode_SHARE_MODE_RW && !strings.HasSuffix(strings.TrimSuffix(arg, ",plain"), ":rw"),
			s.Mode == api.ShareMode_SHARE_MODE_RW_NODELETE && !strings.HasSuffix(strings.TrimSuffix(arg, ",plain"), ":rw-nodelete"):
			t.Errorf("%q may be written, which nobody asked for", arg)
		case strings.ContainsAny(s.Path+s.GuestPath, "\x00\n\x1b"):
			t.Errorf("control characters in %v", s)
		}
	})
}

func TestParseMiB(t *testing.T) {
	for s, want := range map[string]uint32{"": 0, "512": 512, "512M": 512, "512MiB": 512, "4G": 4096, "4g": 4096, "4GB": 4096, "1T": 1 << 20} {
		if got, err := parseMiB("--memory", s); err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"0", "-1", "1.5G", "G", "x", "4K", "99999999999", "4294967295G", " 4G", "4P", "iB"} {
		if got, err := parseMiB("--memory", s); err == nil {
			t.Errorf("%q: taken as %d", s, got)
		}
	}
}

func TestGuestFolder(t *testing.T) {
	shares := []*api.Share{{Path: "/src/app", GuestPath: "/app"}, {Path: "/src/lib"}}
	for _, tc := range []struct{ cwd, want string }{
		{"/src/app", "/app"},
		{"/src/app/a/b", "/app/a/b"},
		{"/src/lib/x", "/src/lib/x"},
		{"/src/app2", "/app"},
		{"/src", "/app"},
		{"/elsewhere", "/app"},
		{"", "/app"},
	} {
		if got := guestFolder(shares, tc.cwd); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.cwd, got, tc.want)
		}
	}
	if got := guestFolder(nil, "/x"); got != "" {
		t.Errorf("without shares: %q", got)
	}
}

func TestSplitGuest(t *testing.T) {
	for _, tc := range []struct{ arg, guest, path string }{
		{"dev:/tmp/x", "dev", "/tmp/x"},
		{"dev:/a:b", "dev", "/a:b"},
		{"dev:", "dev", ""},
		{"./dev:/x", "", "./dev:/x"},
		{"/abs:x", "", "/abs:x"},
		{"plain", "", "plain"},
		{"Upper:/x", "", "Upper:/x"},
		{"-x:/y", "", "-x:/y"},
	} {
		if g, p := splitGuest(tc.arg); g != tc.guest || p != tc.path {
			t.Errorf("%q: %q, %q", tc.arg, g, p)
		}
	}
}
