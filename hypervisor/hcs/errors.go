package hcs

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/carrel-vm/carrel/hypervisor"
)

// HRESULT is how HCS says that a call failed: winerror.h.
type HRESULT uint32

// Failed says whether it is one of a failure.
func (h HRESULT) Failed() bool { return h&0x8000_0000 != 0 }

func (h HRESULT) String() string { return fmt.Sprintf("%#08x", uint32(h)) }

// known returns the code under which meanings has it: the service hands some of
// its own on as HRESULTs (0x8037...) and some as the NTSTATUS that they came from
// (0xc037...).
func (h HRESULT) known() HRESULT {
	if h>>16 == 0xc037 {
		return 0x8037<<16 | h&0xffff
	}
	return h
}

// Failure is a call of HCS that failed.
type Failure struct {
	// Call is the function's name: "HcsStartComputeSystem".
	Call string
	// Result is what it, or the operation that it began, returned.
	Result HRESULT
	// Detail is what the service said besides, bounded and escaped, or empty.
	Detail string
}

func (f *Failure) Error() string {
	s := f.Call + ": " + f.Result.String()
	if m, ok := meanings[f.Result.known()]; ok {
		s += ", " + m.cause
	} else {
		s += ", which Carrel has no explanation for"
	}
	if f.Detail != "" {
		s += "; Windows says: " + f.Detail
	}
	return s
}

// Cure is what would mend it.
func (f *Failure) Cure() string {
	if m, ok := meanings[f.Result.known()]; ok {
		return m.cure
	}
	return "carrel doctor; and look it up as `certutil -error " + f.Result.String() + "`"
}

// failed wraps err for the user: op is what was tried.
func failed(op string, err error) error {
	var f *Failure
	if errors.As(err, &f) {
		return &hypervisor.Error{Op: op, Err: err, Cure: f.Cure()}
	}
	return &hypervisor.Error{Op: op, Err: err}
}

// detailMax is how much of the service's own words is kept, in bytes.
const detailMax = 512

// detail takes the words out of the result document of a failed operation. It
// describes what a hostile guest may have had a part in.
func detail(document string) string {
	var d struct {
		ErrorMessage string
		ErrorEvents  []struct{ Message string }
	}
	if json.Unmarshal([]byte(document), &d) != nil {
		return ""
	}
	words := []string{d.ErrorMessage}
	for _, e := range d.ErrorEvents {
		words = append(words, e.Message)
	}
	var b strings.Builder
	for _, w := range words {
		for _, r := range w {
			if b.Len() > detailMax {
				return b.String() + "..."
			}
			if r != unicode.ReplacementChar && (unicode.IsGraphic(r) || r == ' ') {
				b.WriteRune(r)
			} else {
				fmt.Fprintf(&b, "\\u%04x", r)
			}
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
	}
	return strings.TrimSpace(b.String())
}
