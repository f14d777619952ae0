package share

import (
	"fmt"
	"time"
)

// What came from a guest is marked as what came from the network is, so that
// the host's own gatekeeper looks at a program before it runs: with an extended
// attribute on macOS, with a stream of its own on Windows. Linux has no such
// mark that anything looks at.

// quarantineName is macOS's attribute.
const quarantineName = "com.apple.quarantine"

// quarantine is its value for a file that Carrel has brought and nobody has
// looked at yet: flags, the time in hexadecimal, who brought it, and no event
// of the system's own log.
func quarantine(at time.Time) string {
	return fmt.Sprintf("0081;%08x;Carrel;", max(at.Unix(), 0))
}

// zoneStream is the name of Windows's stream, after the file's own name.
const zoneStream = ":Zone.Identifier"

// zoneIdentifier is its content: zone 3 is the Internet.
const zoneIdentifier = "[ZoneTransfer]\r\nZoneId=3\r\n"
