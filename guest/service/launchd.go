package service

import (
	"bytes"
	"encoding/xml"
	"path/filepath"
	"strings"
)

// LaunchdLabel is the agent's name.
const LaunchdLabel = "io.github.carrel-vm.carreld"

// Launchd is the daemon as an agent of the user's session. Folder is
// ~/Library/LaunchAgents, User the number of the user. It was never run on a Mac.
func Launchd(o Options) (Unit, error) {
	if err := o.check(); err != nil {
		return Unit{}, err
	}
	file, domain := filepath.Join(o.Folder, LaunchdLabel+".plist"), "gui/"+o.User
	u := Unit{
		What: "launchd agent", File: file, Content: launchdText(o),
		// One that is loaded already is not loaded again: it is taken out first.
		Start:  [][]string{{"/bin/sh", "-c", `launchctl bootout "$1/$2" 2>/dev/null; exec launchctl bootstrap "$1" "$3"`, "sh", domain, LaunchdLabel, file}},
		Stop:   [][]string{{"launchctl", "bootout", domain + "/" + LaunchdLabel}},
		Notes:  []string{"the daemon starts with your session, and ends with it"},
		Forget: nil,
	}
	return u, nil
}

func launchdText(o Options) string {
	env := ""
	for _, e := range o.Env {
		name, value, _ := strings.Cut(e, "=")
		env += "\t\t<key>" + xmlText(name) + "</key>\n\t\t<string>" + xmlText(value) + "</string>\n"
	}
	if env != "" {
		env = "\t<key>EnvironmentVariables</key>\n\t<dict>\n" + env + "\t</dict>\n"
	}
	log := ""
	if o.Log != "" {
		log = "\t<key>StandardErrorPath</key>\n\t<string>" + xmlText(o.Log) + "</string>\n"
	}
	return `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<!-- ` + Mark + `; carrel daemon uninstall removes it. -->
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>` + LaunchdLabel + `</string>
	<key>ProgramArguments</key>
	<array>
		<string>` + xmlText(o.Daemon) + `</string>
		<string>daemon</string>
	</array>
` + env + log + `	<key>RunAtLoad</key>
	<true/>
	<key>KeepAlive</key>
	<dict>
		<key>Crashed</key>
		<true/>
	</dict>
	<!-- Only the daemon itself is ended: the keepers of guests go on. -->
	<key>AbandonProcessGroup</key>
	<true/>
	<!-- Guests are not background work: they would be throttled. -->
	<key>ProcessType</key>
	<string>Interactive</string>
</dict>
</plist>
`
}

func xmlText(s string) string {
	var b bytes.Buffer
	xml.EscapeText(&b, []byte(s))
	return b.String()
}
