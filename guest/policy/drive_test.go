package policy

import "testing"

func TestDrivePath(t *testing.T) {
	for in, want := range map[string]string{
		`C:\Users\Ada\src`:            "/mnt/c/Users/Ada/src",
		`d:\`:                         "/mnt/d",
		`D:`:                          "/mnt/d",
		`C:\a\`:                       "/mnt/c/a",
		`C:/a/b c`:                    "/mnt/c/a/b c",
		`\\?\C:\very\long`:            "/mnt/c/very/long",
		`\\.\C:\x`:                    "/mnt/c/x",
		`\\server\share\src`:          "/mnt/unc/server/share/src",
		`\\?\UNC\server\share\src`:    "/mnt/unc/server/share/src",
		`\\?\unc\server\share`:        "/mnt/unc/server/share",
		`\\wsl.localhost\Debian\home`: "/mnt/unc/wsl.localhost/Debian/home",
		`\src`:                        "/src",
		`C:\Ünïcode\名前`:               "/mnt/c/Ünïcode/名前",
	} {
		if got := drivePath(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
