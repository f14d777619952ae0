package steer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
)

// listing is the program as another assembler reads it, for people to check
// against the comment of program.
const listing = `
MovReg dst: r6 src: r1
LdXMemW dst: r2 src: r6 off: 8 imm: 0
JNEImm dst: r2 off: 33 imm: 2
LdXMemW dst: r2 src: r6 off: 40 imm: 0
StXMemW dst: rfp src: r2 off: -4 imm: 0
MovImm dst: r2 imm: 32
StXMemW dst: rfp src: r2 off: -8 imm: 0
LoadMapPtr dst: r1 fd: 7
MovReg dst: r2 src: rfp
AddImm dst: r2 imm: -8
Call FnMapLookupElem
JNEImm dst: r0 off: 23 imm: 0
MovImm dst: r8 imm: 0
LdXMemW dst: r2 src: r6 off: 12 imm: 0
JEqImm dst: r2 off: 4 imm: 6
JNEImm dst: r2 off: 21 imm: 17
LdXMemW dst: r2 src: r6 off: 60 imm: 0
JNEImm dst: r2 off: 19 imm: 53
MovImm dst: r8 imm: 1
StXMemW dst: rfp src: r8 off: -8 imm: 0
LoadMapPtr dst: r1 fd: 8
MovReg dst: r2 src: rfp
AddImm dst: r2 imm: -8
Call FnMapLookupElem
JEqImm dst: r0 off: 11 imm: 0
MovReg dst: r7 src: r0
MovReg dst: r1 src: r6
MovReg dst: r2 src: r7
MovImm dst: r3 imm: 0
Call FnSkAssign
MovReg dst: r8 src: r0
MovReg dst: r1 src: r7
Call FnSkRelease
JNEImm dst: r8 off: 2 imm: 0
MovImm dst: r0 imm: 1
Exit
MovImm dst: r0 imm: 0
Exit
`

// TestProgram has cilium's assembler read what ours wrote: it is the listing, and
// every jump lands on an instruction.
func TestProgram(t *testing.T) {
	var b bytes.Buffer
	code := program(7, 8)
	if err := binary.Write(&b, binary.LittleEndian, code); err != nil {
		t.Fatal(err)
	}
	read, err := asm.AppendInstructions(nil, &b, binary.LittleEndian, "linux")
	if err != nil {
		t.Fatal(err)
	}
	starts := make(map[int]bool) // of instructions; one takes two places
	var text strings.Builder
	for it := read.Iterate(); it.Next(); {
		starts[int(it.Offset)] = true
		fmt.Fprintln(&text, it.Ins)
	}
	if got := text.String(); got != strings.TrimPrefix(listing, "\n") {
		t.Errorf("the program is\n%s\nwant%s", got, listing)
	}
	for it := read.Iterate(); it.Next(); {
		op := it.Ins.OpCode.JumpOp()
		if op != asm.JEq && op != asm.JNE {
			continue
		}
		if to := int(it.Offset) + 1 + int(it.Ins.Offset); it.Ins.Offset < 0 || !starts[to] {
			t.Errorf("at %d: %v jumps to %d", it.Offset, it.Ins, to)
		}
	}
	// A label that is forgotten becomes a jump that no kernel takes.
	var a assembler
	a.jumpIf(0, 0, "nowhere")
	if got := a.finish()[0].off; got != -1 {
		t.Errorf("a jump to nowhere goes to %d", got)
	}
}
