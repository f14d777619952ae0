package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/carrel-vm/carrel/guest/client"
	"github.com/carrel-vm/carrel/guest/place"
	"github.com/carrel-vm/carrel/guest/service"
)

func (a *app) daemonInstallCommand() *cobra.Command {
	return &cobra.Command{
		Use: "install", Short: "Have the system start the daemon when you log in", Args: needs(arguments(0, 0)),
		Long: `Have the system start the daemon when you log in: as a systemd user unit, a
launchd agent, or a scheduled task of Windows. A daemon that runs is replaced;
guests go on. What the unit holds of your environment is what there is now:
CARREL_HOME and the like, proxies, and certificates.`,
		Example: "  carrel daemon install\n  systemctl --user restart carrel      # guests go on",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.doDaemonInstall(cmd.Context()) },
	}
}

func (a *app) daemonUninstallCommand() *cobra.Command {
	var all, yes bool
	cmd := &cobra.Command{
		Use: "uninstall", Short: "Have the system start it no more, and list what was removed", Args: needs(arguments(0, 0)),
		Long: `End the daemon, have the system start it no more, and list what was removed.
Guests go on, and images, guests and settings stay, unless --all: that stops
every guest and removes all that Carrel keeps for you, after a yes.`,
		Example: "  carrel daemon uninstall\n  carrel daemon uninstall --all",
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.doDaemonUninstall(cmd.Context(), all, yes) },
	}
	cmd.Flags().BoolVar(&all, "all", false, "remove guests, images, secrets, logs and settings, too")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

// daemonEnv are variables that a daemon needs as much when the system starts it.
var daemonEnv = []string{"CARREL_HOME", "CARREL_CACHE", "CARREL_SECRET_STORE"}

// networkEnv are those which on Windows an account has of itself.
var networkEnv = []string{"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"}

// unit is how this system would start the daemon at that path.
func unit(path string) (service.Unit, error) {
	p, err := place.Home()
	if err != nil {
		return service.Unit{}, err
	}
	names, env := daemonEnv, []string(nil)
	if runtime.GOOS != "windows" {
		names = append(names[:len(names):len(names)], networkEnv...)
	}
	for _, name := range names {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return service.Here(path, env, p.State)
}

// commandTime bounds one command of the system. systemd waits 90 s for a
// service that does not end.
const commandTime = 2 * time.Minute

func runCommand(ctx context.Context, argv []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}

func (a *app) doDaemonInstall(ctx context.Context) error {
	path, err := client.FindDaemon()
	if err != nil {
		return err
	}
	u, err := unit(path)
	if err != nil {
		return err
	}
	if err := a.endDaemon(ctx, false); err != nil {
		return err
	}
	if err := u.Install(ctx, runCommand); err != nil {
		return &client.Error{Code: "install", Message: "have the system start the daemon", Cause: err.Error(), Cure: "docs/install.md says what each system needs; without it the daemon starts with the first command"}
	}
	c, err := existing(ctx)
	if err != nil {
		return fmt.Errorf("the %s %s is there, and the daemon does not answer: %w", u.What, u.File, err)
	}
	defer c.Close()
	fmt.Fprintf(a.out, "wrote %s\n", safe(u.File))
	a.note("the daemon runs as a " + u.What)
	for _, n := range u.Notes {
		a.note(n)
	}
	return nil
}

// endDaemon ends a daemon that runs, if one does.
func (a *app) endDaemon(ctx context.Context, guests bool) error {
	c, err := existing(ctx)
	if client.IsNotRunning(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Shutdown(ctx, guests)
}

func (a *app) doDaemonUninstall(ctx context.Context, all, yes bool) error {
	path, err := client.FindDaemon()
	if err != nil {
		return err
	}
	u, err := unit(path)
	if err != nil {
		return err
	}
	p, err := place.Home()
	if err != nil {
		return err
	}
	if all {
		if err := a.agreesToLose(ctx, p, yes); err != nil {
			return err
		}
		if err := a.removeSecrets(ctx); err != nil {
			return err
		}
	}
	if err := a.endDaemon(ctx, all); err != nil {
		return err
	}
	removed, err := u.Uninstall(ctx, runCommand)
	for _, r := range removed {
		fmt.Fprintf(a.out, "removed %s\n", safe(r))
	}
	switch {
	case err != nil:
		a.warn("what the system said: " + err.Error())
	case len(removed) == 0:
		a.note("the system did not start the daemon")
	}
	for _, l := range u.Left() {
		a.note("yours, and left: " + l)
	}
	if !all {
		a.note("left, until carrel daemon uninstall --all: " + p.State + ", " + p.Config + ", " + p.Cache)
		return nil
	}
	return a.removeAll(p)
}

// agreesToLose asks a person, and shows what there is to lose.
func (a *app) agreesToLose(ctx context.Context, p place.Place, yes bool) error {
	if yes {
		return nil
	}
	for _, dir := range owned(p) {
		fmt.Fprintf(a.err, "  %s\n", safe(dir))
	}
	if !a.asks() {
		return usageError{errors.New("nothing is removed without a yes: --yes")}
	}
	answer, err := a.ask(ctx, "stop every guest and remove all of that, with reviews that were not applied? It cannot be undone. [y]es, [N]o")
	if err != nil {
		return err
	}
	if answer != "y" && answer != "yes" {
		a.note("nothing was removed")
		return errNo
	}
	return nil
}

// removeSecrets takes what we keep in the system's keychain out of it, which
// only a daemon can.
func (a *app) removeSecrets(ctx context.Context) error {
	c, err := a.connect(ctx)
	if err != nil {
		return fmt.Errorf("remove the secrets: %w", err)
	}
	defer c.Close()
	secrets, err := c.Secrets(ctx)
	if err != nil {
		return err
	}
	for _, s := range secrets {
		if err := c.RemoveSecret(ctx, s.Name); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "removed secret %s\n", safe(s.Name))
	}
	return nil
}

// owned are the folders that are ours alone. A cache that CARREL_CACHE names may
// be others', too.
func owned(p place.Place) []string {
	dirs := []string{p.State, p.Config, p.Run}
	if os.Getenv("CARREL_CACHE") == "" {
		dirs = append(dirs, p.Cache)
	}
	return dirs
}

func (a *app) removeAll(p place.Place) error {
	for _, dir := range owned(p) {
		if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
		fmt.Fprintf(a.out, "removed %s\n", safe(dir))
	}
	if os.Getenv("CARREL_CACHE") != "" {
		a.note("left, as CARREL_CACHE names it: " + p.Cache)
	}
	return nil
}
