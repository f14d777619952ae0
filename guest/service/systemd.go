package service

import (
	"fmt"
	"path/filepath"
	"strings"
)

// SystemdName is the unit's.
const SystemdName = "carrel.service"

// Systemd is the daemon as a unit of the user's manager. Folder is
// $XDG_CONFIG_HOME/systemd/user.
func Systemd(o Options) (Unit, error) {
	if err := o.check(); err != nil {
		return Unit{}, err
	}
	if strings.ContainsAny(o.Daemon, "\"'\\") {
		return Unit{}, fmt.Errorf("systemd runs no program whose path has quotes or backslashes: %s (install Carrel in a folder with an ordinary name)", o.Daemon)
	}
	env := ""
	for _, e := range o.Env {
		env += "Environment=" + systemdWord(e) + "\n"
	}
	u := Unit{
		What: "systemd user unit", File: filepath.Join(o.Folder, SystemdName), Content: systemdText(systemdWord(o.Daemon), env, "# "+Mark+"; carrel daemon uninstall removes it.\n"),
		Start:   [][]string{systemctl("daemon-reload"), systemctl("enable", SystemdName), systemctl("restart", SystemdName)},
		Stop:    [][]string{systemctl("disable", SystemdName), systemctl("stop", SystemdName)},
		Forget:  [][]string{systemctl("daemon-reload")},
		Links:   []string{filepath.Join(o.Folder, "default.target.wants", SystemdName)},
		Folders: []string{filepath.Join(o.Folder, "default.target.wants"), o.Folder, filepath.Dir(o.Folder)},
		Kept:    []string{filepath.Join(o.Folder, SystemdName+".d")},
		Notes:   []string{"guests and the daemon end with your last session, unless: loginctl enable-linger"},
	}
	return u, nil
}

// PackagedUnit is the unit of the Debian package, for all users.
func PackagedUnit(daemon string) string {
	return systemdText(systemdWord(daemon), "", "")
}

func systemctl(args ...string) []string { return append([]string{"systemctl", "--user"}, args...) }

func systemdText(exec, env, head string) string {
	return head + `[Unit]
Description=Carrel's daemon: guests for untrusted work
Documentation=file:///usr/share/doc/carrel/install.md

[Service]
Type=notify
ExecStart=` + exec + ` daemon
` + env + `# Only the daemon itself is ended: the keepers of guests go on, and the next
# daemon takes them over. This is what makes an update harmless.
KillMode=process
# A guest that the kernel ends for want of memory is no reason to end the others.
OOMPolicy=continue
# Guests behind the weaker walls get groups of their own below the unit's.
Delegate=yes
Restart=on-failure
# What the daemon itself gives as a reason, such as another daemon, stays so.
RestartPreventExitStatus=125

[Install]
WantedBy=default.target
`
}

// systemdWord quotes one word (systemd.service(5), "Command lines";
// systemd.exec(5), "Environment="). A dollar is one in both: the first word of a
// command knows no variables.
func systemdWord(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(s) + `"`
}
