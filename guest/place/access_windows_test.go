package place

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/windows"
)

// open lets someone read what lies at path, beside its owner.
func open(t *testing.T, path, who string) {
	t.Helper()
	user, err := ownUser()
	if err != nil {
		t.Fatal(err)
	}
	sd, err := windows.SecurityDescriptorFromString("D:P(A;OICI;FA;;;" + user + ")(A;OICI;FR;;;" + who + ")")
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := sd.DACL()
	if err != nil {
		t.Fatal(err)
	}
	if err := windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, nil, nil, list, nil); err != nil {
		t.Fatal(err)
	}
}

// A folder that others may enter is not used, and neither is a file; what we make
// passes, and so does what is made in it.
func TestAccessLists(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "home", "state")
	if err := MakePrivate(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := CheckFile(f); err != nil {
		t.Error(err)
	}
	open(t, path, "WD")
	if err := CheckFile(f); err == nil || !strings.Contains(err.Error(), "S-1-1-0") || !strings.Contains(err.Error(), "icacls") {
		t.Errorf("a file that everybody may read: %v", err)
	}
	open(t, dir, "WD")
	if err := MakePrivate(dir); err == nil || !strings.Contains(err.Error(), "S-1-1-0") {
		t.Errorf("a folder that everybody may enter: %v", err)
	}
	open(t, dir, "SY")
	if err := MakePrivate(dir); err != nil {
		t.Errorf("a folder that the system may enter: %v", err)
	}
}

// The lists themselves, as Windows has them in words.
func TestOnlyOurs(t *testing.T) {
	user, err := ownUser()
	if err != nil {
		t.Fatal(err)
	}
	for list, want := range map[string]string{
		"O:" + user + "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;" + user + ")": "",
		"O:BAD:(A;ID;FA;;;" + user + ")(A;OICIIO;FA;;;CO)":                            "",
		"O:" + user + "D:(A;;FA;;;" + user + ")(A;;0x100080;;;WD)":                    "", // may look at its times
		"O:" + user + "D:(D;;FA;;;WD)(A;;FA;;;" + user + ")":                          "",
		"O:" + user + "D:(A;;FA;;;" + user + ")(A;;FR;;;BU)":                          "S-1-5-32-545",
		"O:" + user + "D:(A;;FA;;;" + user + ")(A;OICIIO;FR;;;AU)":                    "S-1-5-11", // for what is made in it
		"O:" + user + "D:(A;;FA;;;" + user + ")(A;;DC;;;WD)":                          "S-1-1-0",  // deletes what is in it
		"O:" + user + "D:(A;;FA;;;" + user + ")(A;;WD;;;IU)":                          "S-1-5-4",  // changes the list
		"O:S-1-5-21-1-2-3-1001D:(A;;FA;;;" + user + ")":                               "belongs to",
		"D:(A;;FA;;;" + user + ")":                                                    "owner is unknown",
	} {
		sd, err := windows.SecurityDescriptorFromString(list)
		if err != nil {
			t.Errorf("%s: %v", list, err)
			continue
		}
		if err := onlyOurs("PATH", sd); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, expected %q", list, err, want)
		}
	} // Without any list everybody may do everything.
	sd, err := windows.NewSecurityDescriptor()
	if err != nil {
		t.Fatal(err)
	}
	sid, err := windows.StringToSid(user)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(sd.SetOwner(sid, false), sd.SetDACL(nil, true, false)); err != nil {
		t.Fatal(err)
	}
	if err := onlyOurs("PATH", sd); err == nil || !strings.Contains(err.Error(), "no access list") {
		t.Errorf("without a list: %v", err)
	}
}
