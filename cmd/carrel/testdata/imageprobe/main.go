// Command imageprobe is all that is in an image: it says what a program finds
// that has nothing beside it.
package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	wd, err := os.Getwd()
	fmt.Printf("args %q uid %d gid %d dir %s %v\n", os.Args[1:], os.Getuid(), os.Getgid(), wd, err)
	fmt.Printf("HOME=%s GREETING=%s\n", os.Getenv("HOME"), os.Getenv("GREETING"))
	b, err := os.ReadFile("/etc/resolv.conf")
	line, _, _ := strings.Cut(string(b), "\n")
	fmt.Println("resolver:", line, err)
	err = os.WriteFile("/tmp/x", []byte("x"), 0o600)
	fmt.Println("write to /tmp:", err)
	for _, d := range []string{"/dev/null", "/proc/self/status", "/run", "/sys"} {
		fi, err := os.Lstat(d)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(d, "link:", fi.Mode()&os.ModeSymlink != 0)
	}
	if f := os.Getenv("SSL_CERT_FILE"); f != "" {
		_, err := os.Stat(f)
		fmt.Println("certificates:", err)
	}
}
