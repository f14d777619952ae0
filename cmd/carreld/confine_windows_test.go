package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/windows"

	"github.com/carrel-vm/carrel/guest/inherit"
)

// underWine says that this Windows is Wine, which enforces neither jobs nor
// integrity.
var underWine = windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil

// TestConfineHere: a process that confines itself writes to its store and to
// nothing else of the user's, and starts no other; where that does not hold, as
// under Wine, it ends instead of going on.
func TestConfineHere(t *testing.T) {
	if store := os.Getenv("CONFINE_TEST"); store != "" {
		os.Stdin.Read(make([]byte, 1)) // until it is in its job
		confinedChild(store)
		return
	}
	for _, low := range []string{"low", "same"} {
		t.Run(low, func(t *testing.T) {
			dir := t.TempDir()
			store := filepath.Join(dir, low)
			if err := os.Mkdir(store, 0o700); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestConfineHere$")
			cmd.Env = append(os.Environ(), "CONFINE_TEST="+store)
			var said bytes.Buffer
			cmd.Stdout, cmd.Stderr = &said, &said
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := inherit.Start(cmd); err != nil {
				t.Fatal(err)
			}
			ended, err := inherit.Hold(cmd, inherit.Limits{Memory: 1 << 30})
			if err != nil {
				t.Fatal(err)
			}
			in.Write([]byte("x"))
			cmd.Wait()
			ended()
			want := "confined: <nil>; outside: true; store: <nil>"
			if low == "same" {
				want = "confined: <nil>; outside: false; store: <nil>"
			}
			if underWine {
				want = "confined: verify the confinement: a process can still be started"
				if low == "low" { // which is the first thing that Wine cannot do
					want = "confined: "
				}
			}
			if !strings.Contains(said.String(), want) || underWine && strings.Contains(said.String(), "confined: <nil>") {
				t.Errorf("it said %q instead of %q", said.String(), want)
			}
			t.Logf("%s", said.String())
		})
	}
}

func confinedChild(store string) {
	low := filepath.Base(store) == "low"
	err := confineHere(low, []string{store})
	outside := os.WriteFile(filepath.Join(filepath.Dir(store), "outside"), nil, 0o600)
	inside := os.WriteFile(filepath.Join(store, "inside"), nil, 0o600)
	fmt.Printf("confined: %v; outside: %v; store: %v\n", err, outside != nil, inside)
	os.Exit(0)
}
