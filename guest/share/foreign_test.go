package share

import (
	"testing"
	"time"
)

// H10: the marks, as macOS and Windows write them for a download.
func TestForeignMarks(t *testing.T) {
	for at, want := range map[time.Time]string{
		time.Unix(0x5f3e1a2b, 999): "0081;5f3e1a2b;Carrel;",
		time.Unix(1, 0):            "0081;00000001;Carrel;",
		time.Unix(-1, 0):           "0081;00000000;Carrel;",
	} {
		if got := quarantine(at); got != want {
			t.Errorf("%v: %q, want %q", at, got, want)
		}
	}
	if quarantineName != "com.apple.quarantine" || zoneStream != ":Zone.Identifier" || zoneIdentifier != "[ZoneTransfer]\r\nZoneId=3\r\n" {
		t.Error("a name or a content that nothing looks for")
	}
}
