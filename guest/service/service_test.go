package service

import (
	"context"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

func mine(t *testing.T) map[string]Unit {
	t.Helper()
	made := map[string]Unit{}
	for name, f := range map[string]func() (Unit, error){
		"systemd": func() (Unit, error) {
			return Systemd(Options{Daemon: "/home/ada/my apps/100% $HOME/carreld", Folder: "/home/ada/.config/systemd/user", Env: []string{"CARREL_HOME=/srv/a b", `X=1"2\3%h$y`}})
		},
		"launchd": func() (Unit, error) {
			return Launchd(Options{Daemon: "/Users/ada/A & B/<carreld>", Folder: "/Users/ada/Library/LaunchAgents", Env: []string{"CARREL_HOME=/Users/ada/c&c"}, Log: "/Users/ada/Library/Application Support/carrel/state/daemon.log", User: "501"})
		},
		"task": func() (Unit, error) {
			return Task(Options{Daemon: `C:\Users\Ada & Co\carreld.exe`, Folder: `C:\Users\Ada & Co\AppData\Local\carrel\state`, User: `DESK\Ada & Co`})
		},
	} {
		u, err := f()
		if err != nil {
			t.Fatal(name, err)
		}
		made[name] = u
	}
	return made
}

func TestUnits(t *testing.T) {
	for name, u := range mine(t) {
		text := strings.ReplaceAll(strings.ReplaceAll(u.Content, "\x00", ""), "\r", "")
		text = strings.TrimPrefix(text, "\xff\xfe")
		got := fmt.Sprintf("%s\nfile: %s\nstart: %q\nstop: %q\nforget: %q\nlinks: %q\nkept: %q\nnotes: %q\n\n%s", u.What, u.File, u.Start, u.Stop, u.Forget, u.Links, u.Kept, u.Notes, text)
		golden := "testdata/" + name + ".golden"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s:\n%s\nwant:\n%s\nagain: go test ./guest/service -update", name, got, want)
		}
		if !strings.Contains(text, Mark) {
			t.Errorf("%s: without its mark nobody removes it", name)
		}
		if name == "systemd" {
			continue
		}
		d := xml.NewDecoder(strings.NewReader(strings.Replace(text, `encoding="UTF-16"`, `encoding="UTF-8"`, 1)))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
				break
			}
		}
	}
}

// What restarting the service must never do is in each text.
func TestKeepersStay(t *testing.T) {
	for name, want := range map[string]string{"systemd": "\nKillMode=process\n", "launchd": "<key>AbandonProcessGroup</key>\n\t<true/>", "task": "<AllowHardTerminate>false"} {
		u := mine(t)[name]
		if !strings.Contains(strings.ReplaceAll(u.Content, "\x00", ""), want) {
			t.Errorf("%s has no %q", name, want)
		}
	}
	for _, argv := range mine(t)["task"].Stop {
		if slices.Contains(argv, "/End") {
			t.Error("schtasks /End ends keepers, too")
		}
	}
}

func TestRefuses(t *testing.T) {
	for name, o := range map[string]Options{
		"relative":     {Daemon: "bin/carreld"},
		"a line more":  {Daemon: "/a\nExecStartPre=/bin/sh"},
		"in a value":   {Daemon: "/a", Env: []string{"A=b\nKillMode=control-group"}},
		"no variable":  {Daemon: "/a", Env: []string{"A"}},
		"in a folder":  {Daemon: "/a", Folder: "/b\x00"},
		"the user":     {Daemon: "/a", User: "x\x1b"},
		"no character": {Daemon: "/a\ufffd"},
	} {
		for system, f := range map[string]func(Options) (Unit, error){"systemd": Systemd, "launchd": Launchd, "task": Task} {
			if _, err := f(o); err == nil {
				t.Errorf("%s: %s took %+v", name, system, o)
			}
		}
	}
	for _, path := range []string{`/a"b`, `/a'b`, `/a\b`} { // TestService of cmd/carrel has systemd run a path with the rest
		if _, err := Systemd(Options{Daemon: path}); err == nil {
			t.Errorf("systemd would not run %s", path)
		}
	}
	if _, err := Task(Options{Daemon: `C:\carreld.exe`, Env: []string{"CARREL_HOME=D:\\c"}}); err == nil || !strings.Contains(err.Error(), "setx") {
		t.Errorf("a task with an environment: %v", err)
	}
}

// recorder runs nothing: it notes what it was asked, and fails at what it is told.
type recorder struct {
	ran  []string
	fail string
}

func (r *recorder) run(_ context.Context, argv []string) (string, error) {
	line := strings.Join(argv, " ")
	r.ran = append(r.ran, line)
	if r.fail != "" && strings.Contains(line, r.fail) {
		return "no such\n thing", errors.New("exit status 1")
	}
	return "", nil
}

func TestInstallAndUninstall(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "systemd", "user")
	u, err := Systemd(Options{Daemon: "/opt/carreld", Folder: dir})
	if err != nil {
		t.Fatal(err)
	}
	var r recorder
	if err := u.Install(t.Context(), r.run); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(u.File); err != nil || string(b) != u.Content {
		t.Fatalf("%q, %v", b, err)
	}
	if want := []string{"systemctl --user daemon-reload", "systemctl --user enable carrel.service", "systemctl --user restart carrel.service"}; !slices.Equal(r.ran, want) {
		t.Errorf("ran %q", r.ran)
	}
	if err := u.Install(t.Context(), r.run); err != nil {
		t.Errorf("a second time: %v", err)
	}
	// As systemctl enable does; the user's own part stays.
	os.Mkdir(filepath.Dir(u.Links[0]), 0o755)
	os.Symlink(u.File, u.Links[0])
	os.Mkdir(u.Kept[0], 0o755)
	r = recorder{}
	removed, err := u.Uninstall(t.Context(), r.run)
	if err != nil || !slices.Equal(removed, []string{u.File, u.Links[0]}) {
		t.Errorf("removed %q, %v", removed, err)
	}
	if want := []string{"systemctl --user disable carrel.service", "systemctl --user stop carrel.service", "systemctl --user daemon-reload"}; !slices.Equal(r.ran, want) {
		t.Errorf("ran %q", r.ran)
	}
	if left := u.Left(); !slices.Equal(left, u.Kept) {
		t.Errorf("left %q", left)
	}
	var files []string
	filepath.WalkDir(top, func(p string, d os.DirEntry, err error) error {
		files = append(files, p)
		return err
	})
	if want := []string{top, filepath.Dir(dir), dir, u.Kept[0]}; !slices.Equal(files, want) {
		t.Errorf("left behind: %q, want %q", files, want)
	}
	r = recorder{}
	if removed, err := u.Uninstall(t.Context(), r.run); err != nil || removed != nil || r.ran != nil {
		t.Errorf("with nothing there: %q, %v, ran %q", removed, err, r.ran)
	}
}

// A system that refuses leaves things as they were.
func TestInstallFails(t *testing.T) {
	u, err := Systemd(Options{Daemon: "/opt/carreld", Folder: filepath.Join(t.TempDir(), "user")})
	if err != nil {
		t.Fatal(err)
	}
	r := recorder{fail: "restart"}
	if err := u.Install(t.Context(), r.run); err == nil || !strings.Contains(err.Error(), "systemctl --user restart carrel.service: exit status 1: no such thing") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(u.File); !os.IsNotExist(err) {
		t.Errorf("the unit stayed: %v", err)
	}
	if !slices.Contains(r.ran, "systemctl --user disable carrel.service") {
		t.Errorf("it stayed enabled: %q", r.ran)
	}
	old := strings.Replace(u.Content, "/opt/carreld", "/old/carreld", 1)
	os.WriteFile(u.File, []byte(old), 0o644)
	if err := u.Install(t.Context(), r.run); err == nil {
		t.Error("no error")
	}
	if b, _ := os.ReadFile(u.File); string(b) != old {
		t.Errorf("the old unit is not back: %s", b)
	}
}

// A file that somebody else wrote is neither replaced nor removed.
func TestNotOurs(t *testing.T) {
	dir := t.TempDir()
	u, err := Systemd(Options{Daemon: "/opt/carreld", Folder: dir})
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other")
	os.WriteFile(other, []byte("# "+Mark), 0o644)
	for name, make := range map[string]func() error{
		"another's": func() error { return os.WriteFile(u.File, []byte("[Service]\nExecStart=/bin/true\n"), 0o644) },
		"a link":    func() error { return os.Symlink(other, u.File) },
		"a folder":  func() error { return os.Mkdir(u.File, 0o755) },
	} {
		os.RemoveAll(u.File)
		if err := make(); err != nil {
			t.Fatal(err)
		}
		var r recorder
		if err := u.Install(t.Context(), r.run); err == nil || r.ran != nil {
			t.Errorf("%s: installed, %v, ran %q", name, err, r.ran)
		}
		if removed, err := u.Uninstall(t.Context(), r.run); err == nil || removed != nil || r.ran != nil {
			t.Errorf("%s: removed %q, %v", name, removed, err)
		}
		if _, err := os.Lstat(u.File); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
