package secret

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/zalando/go-keyring"
)

// insideBus is set in the test process that has a session bus of its own.
const insideBus = "CARREL_TEST_INSIDE_BUS"

// TestSecretService runs the store against a real Secret Service:
// gnome-keyring, on a session bus and in a home of its own.
func TestSecretService(t *testing.T) {
	for _, tool := range []string{"dbus-run-session", "gnome-keyring-daemon"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: %v (scripts/setup installs it)", tool, err)
		}
	}
	home := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "dbus-run-session", "--", os.Args[0], "-test.run=^TestInsideBus$", "-test.v", "-test.timeout=9m")
	cmd.Env = []string{insideBus + "=1", "HOME=" + home, "XDG_RUNTIME_DIR=" + home, "XDG_DATA_HOME=" + filepath.Join(home, "data"), "XDG_CONFIG_HOME=" + filepath.Join(home, "config"), "PATH=" + os.Getenv("PATH"), "TMPDIR=" + home, "LC_ALL=C.UTF-8"}
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestInsideBus") {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestInsideBus(t *testing.T) {
	if os.Getenv(insideBus) == "" {
		return // TestSecretService runs this where there is a bus
	}
	ctx := t.Context()
	if ok, err := keychainAnswers(ctx); err != nil {
		t.Fatal(err)
	} else if ok {
		// It can be started by the bus itself; then it asks for a new password,
		// which nobody here would type. Ours is started before that.
		t.Log("the bus knows how to start a Secret Service")
	}
	startKeyring(t)
	if ok, err := keychainAnswers(ctx); !ok || err != nil {
		t.Fatalf("the Secret Service does not answer: %v", err)
	}
	dir := filepath.Join(t.TempDir(), "config")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	testStore(t, s, inKeychain)

	if _, err := s.Set(ctx, "npm", nil, []byte(value)); err != nil {
		t.Fatal(err)
	}
	x, err := s.load()
	if err != nil {
		t.Fatal(err)
	}
	at := x.at(x.find("npm")).Name
	if v, err := keyring.Get(service, at); err != nil || v != value {
		t.Errorf("the item in the keychain: %v", err)
	}
	big := strings.Repeat("x", MaxValue)
	if _, err := s.Set(ctx, "npm", nil, []byte(big)); err != nil {
		t.Errorf("64 KiB: %v", err)
	}
	if values(t, s, "npm")[0] != big {
		t.Error("64 KiB came back as something else")
	}
	if _, err := keyring.Get(service, at); err == nil {
		t.Error("the value before is still in the keychain")
	}
	if _, err := os.Stat(filepath.Join(dir, "secrets.age")); err == nil {
		t.Error("there is a file beside the keychain")
	}

	// Locked, with nobody to type the password: an error, no file.
	bus, err := dbus.ConnectSessionBus()
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	var locked []dbus.ObjectPath
	var prompt dbus.ObjectPath
	if err := bus.Object(secrets, "/org/freedesktop/secrets").Call("org.freedesktop.Secret.Service.Lock", 0, []dbus.ObjectPath{"/org/freedesktop/secrets/collection/login"}).Store(&locked, &prompt); err != nil || len(locked) != 1 {
		t.Fatalf("lock the keyring: %v, %v", locked, err)
	}
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if got, err := s.Get(short, "npm"); err == nil {
		t.Errorf("a locked keyring gave %d secrets", len(got))
	}
}

// startKeyring starts a keyring daemon with an unlocked keyring, and returns
// when it serves.
func startKeyring(t *testing.T) {
	t.Helper()
	bus, err := dbus.ConnectSessionBus()
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	if err := bus.AddMatchSignal(dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, secrets)); err != nil {
		t.Fatal(err)
	}
	signals := make(chan *dbus.Signal, 8)
	bus.Signal(signals)
	var log strings.Builder
	d := exec.Command("gnome-keyring-daemon", "--foreground", "--unlock", "--components=secrets")
	d.Stdin = strings.NewReader("a password\n") // to the end of input
	d.Stdout, d.Stderr = &log, &log
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Process.Kill(); d.Wait() })
	for end := time.After(5 * time.Minute); ; {
		select {
		case sig := <-signals:
			if len(sig.Body) == 3 && sig.Body[0] == secrets && sig.Body[2] != "" {
				return
			}
		case <-end:
			d.Process.Kill()
			d.Wait()
			t.Fatalf("gnome-keyring-daemon does not serve secrets:\n%s", log.String())
		}
	}
}
