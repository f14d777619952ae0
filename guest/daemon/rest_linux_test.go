package daemon

import "testing"

// The program's pages go and come back: this process goes on, and holds less for a
// moment.
func TestDropProgram(t *testing.T) {
	before := residentBytes()
	dropProgram()
	after := residentBytes()
	t.Logf("%d KiB resident, %d before", after>>10, before>>10)
	if before == 0 || after >= before {
		t.Errorf("nothing was given back: %d, %d before", after, before)
	}
}
