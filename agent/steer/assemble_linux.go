package steer

import "golang.org/x/sys/unix"

// insn is struct bpf_insn (linux/bpf.h), for little-endian processors, which
// are all that we build for: the destination register is the low half of regs.
type insn struct {
	code uint8
	regs uint8
	off  int16
	imm  int32
}

// assembler collects instructions. Jumps go forward to a label by its name.
type assembler struct {
	code   []insn
	jumps  map[int]string
	labels map[string]int
}

func (a *assembler) put(code, dst, src uint8, off int16, imm int32) {
	a.code = append(a.code, insn{code, src<<4 | dst, off, imm})
}

func (a *assembler) move(dst, src uint8) {
	a.put(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_X, dst, src, 0, 0)
}

func (a *assembler) set(dst uint8, v int32) {
	a.put(unix.BPF_ALU64|unix.BPF_MOV|unix.BPF_K, dst, 0, 0, v)
}

func (a *assembler) add(dst uint8, v int32) {
	a.put(unix.BPF_ALU64|unix.BPF_ADD|unix.BPF_K, dst, 0, 0, v)
}

func (a *assembler) load32(dst, src uint8, off int16) {
	a.put(unix.BPF_LDX|unix.BPF_MEM|unix.BPF_W, dst, src, off, 0)
}

func (a *assembler) store32(dst uint8, off int16, src uint8) {
	a.put(unix.BPF_STX|unix.BPF_MEM|unix.BPF_W, dst, src, off, 0)
}

// loadMap takes two places: the value is 64 bits wide.
func (a *assembler) loadMap(dst uint8, fd int) {
	a.put(unix.BPF_LD|unix.BPF_IMM|unix.BPF_DW, dst, unix.BPF_PSEUDO_MAP_FD, 0, int32(fd))
	a.put(0, 0, 0, 0, 0)
}

func (a *assembler) call(function int32) {
	a.put(unix.BPF_JMP|unix.BPF_CALL, 0, 0, 0, function)
}

func (a *assembler) exit() { a.put(unix.BPF_JMP|unix.BPF_EXIT, 0, 0, 0, 0) }

func (a *assembler) jumpIf(reg uint8, v int32, label string) {
	a.jump(unix.BPF_JEQ, reg, v, label)
}

func (a *assembler) jumpUnless(reg uint8, v int32, label string) {
	a.jump(unix.BPF_JNE, reg, v, label)
}

func (a *assembler) jump(op, reg uint8, v int32, label string) {
	if a.jumps == nil {
		a.jumps = make(map[int]string)
	}
	a.jumps[len(a.code)] = label
	a.put(unix.BPF_JMP|op|unix.BPF_K, reg, 0, 0, v)
}

func (a *assembler) label(name string) {
	if a.labels == nil {
		a.labels = make(map[string]int)
	}
	a.labels[name] = len(a.code)
}

// finish resolves the jumps. One to a label that is not there jumps to itself,
// which the kernel does not accept.
func (a *assembler) finish() []insn {
	for at, label := range a.jumps {
		a.code[at].off = -1
		if to, ok := a.labels[label]; ok {
			a.code[at].off = int16(to - at - 1)
		}
	}
	return a.code
}
