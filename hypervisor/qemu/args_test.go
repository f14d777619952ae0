package qemu

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/hypervisor"
)

var update = flag.Bool("update", false, "write the golden files")

func config(shares int, scratch string) hypervisor.Config {
	c := hypervisor.Config{
		Name: "quiet-otter", Dir: "/state/guests/quiet-otter",
		Kernel: "/cache/kernel/vmlinuz", Initrd: "/cache/initrd", Root: "/cache/root,with \"odd\" name.erofs",
		Scratch: scratch, CPUs: 2, MemoryMiB: 2048,
	}
	for i := range shares {
		c.Shares = append(c.Shares, hypervisor.Share{Tag: fmt.Sprintf("share%d", i), Path: "/home/u/p", GuestPath: "/home/u/p"})
	}
	return c
}

func volumes(c hypervisor.Config, n int) hypervisor.Config {
	for i := range n {
		c.Volumes = append(c.Volumes, hypervisor.Volume{Serial: fmt.Sprintf("volume%d", i), Path: fmt.Sprintf("/state/volumes/v%d/disk.img", i), GuestPath: "/cache"})
	}
	return c
}

func machine(v Version, accel string, shares int) Machine {
	m := Machine{Version: v, Accel: accel, QMP: 4, Console: 5, Vsock: 6}
	for i := range shares {
		m.Shares = append(m.Shares, 7+i)
	}
	return m
}

func TestArgsGolden(t *testing.T) {
	debian12, backports := Version{7, 2, 22}, Version{10, 0, 2}
	for _, tc := range []struct {
		name   string
		cfg    hypervisor.Config
		v      Version
		accel  string
		shares int
	}{
		{"7.2-tcg", config(1, "/state/scratch.img"), debian12, TCG, 1},
		{"7.2-kvm", config(1, "/state/scratch.img"), debian12, KVM, 1},
		{"7.2-tcg-bare", config(0, ""), debian12, TCG, 0},
		{"7.2-tcg-full", config(5, "/state/scratch.img"), debian12, TCG, 5},
		{"7.2-tcg-volumes", volumes(config(5, "/state/scratch.img"), 2), debian12, TCG, 3},
		{"7.2-tcg-arm64", config(1, "/state/scratch.img"), debian12, TCG, 1},
		{"7.2-kvm-arm64", config(0, ""), debian12, KVM, 0},
		{"10.0-tcg", config(1, "/state/scratch.img"), backports, TCG, 1},
		{"10.0-kvm", config(1, "/state/scratch.img"), backports, KVM, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := machine(tc.v, tc.accel, tc.shares)
			if strings.HasSuffix(tc.name, "-arm64") {
				m.Arch = ARM64
			}
			got := strings.Join(Args(tc.cfg, m), "\n") + "\n"
			file := filepath.Join("testdata", tc.name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("differs from %s:\n%s\nif it should: go test ./hypervisor/qemu -run ArgsGolden -update", file, got)
			}
		})
	}
}

// TestCounterWords: how fast the host counts is told to a guest that would otherwise measure it, and to no other.
func TestCounterWords(t *testing.T) {
	for _, tc := range []struct {
		arch, accel string
		khz         int
		told        bool
	}{
		{AMD64, TCG, 2596130, true},
		{"", TCG, 2596130, true},
		{AMD64, TCG, 0, false},
		{AMD64, KVM, 2596130, false},
		{ARM64, TCG, 2596130, false},
	} {
		words := " " + Cmdline(config(0, ""), Machine{Version: MinVersion, Arch: tc.arch, Accel: tc.accel, CounterKHz: tc.khz}) + " "
		if told := strings.Contains(words, " tsc_early_khz=2596130 tsc=reliable "); told != tc.told || strings.Contains(words, "tsc") != tc.told {
			t.Errorf("%+v: %s", tc, words)
		}
	}
}

// TestArgsHold checks for every size what no golden file should ever lose.
func TestArgsHold(t *testing.T) {
	for _, scratch := range []string{"", "/s"} {
		for _, accel := range []string{KVM, TCG} {
			most := MaxShares(config(0, scratch))
			for n := range most + 1 {
				cfg := config(n, scratch)
				args := Args(cfg, machine(MinVersion, accel, n))
				buses := map[string]bool{}
				devices := 0
				for i, a := range args {
					if a != "-device" {
						continue
					}
					var d struct{ Driver, Bus string }
					if err := json.Unmarshal([]byte(args[i+1]), &d); err != nil {
						t.Fatalf("%s: %v", args[i+1], err)
					}
					devices++
					buses[d.Bus] = true
					if strings.Contains(d.Driver, "net") {
						t.Errorf("a network card: %s", args[i+1])
					}
				}
				if devices > Slots || len(buses) != devices {
					t.Errorf("%d shares: %d devices in %d of %d slots", n, devices, len(buses), Slots)
				}
				for _, must := range []string{"-nodefaults", "-no-user-config", "-no-reboot", "-sandbox"} {
					if !slices.Contains(args, must) {
						t.Errorf("%d shares: no %s", n, must)
					}
				}
				for _, never := range []string{"-netdev", "-nic", "-net", "-vnc", "-spice", "-gdb", "-s", "-qmp", "-monitor", "-daemonize"} {
					if slices.Contains(args, never) {
						t.Errorf("%d shares: %s", n, never)
					}
				}
			}
			if err := CheckConfig(config(most, scratch)); err != nil {
				t.Errorf("%d shares: %v", most, err)
			}
			// Those for which there is no slot are no devices.
			cfg := config(most+3, scratch)
			if err := CheckConfig(cfg); err != nil {
				t.Errorf("%d shares: %v", most+3, err)
			}
			if got, want := Args(cfg, machine(MinVersion, accel, most)), Args(config(most, scratch), machine(MinVersion, accel, most)); !slices.Equal(got, want) {
				t.Errorf("%d shares make another machine than %d:\n%q\n%q", most+3, most, got, want)
			}
		}
	}
}

func TestCheckConfigCmdline(t *testing.T) {
	for word, good := range map[string]bool{"carrel.probe=1": true, "": false, "a b": false, "a\n": false, "a\x00": false, "é": false} {
		c := config(0, "")
		c.Cmdline = []string{word}
		if err := CheckConfig(c); (err == nil) != good {
			t.Errorf("%q: %v", word, err)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for _, tc := range []struct {
		out  string
		want Version
		bad  bool
	}{
		{out: "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022 Fabrice Bellard\n", want: Version{7, 2, 22}},
		{out: "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2~bpo12+1)\n", want: Version{10, 0, 2}},
		{out: "warning: something\nQEMU emulator version 9.1.0\n", want: Version{9, 1, 0}},
		{out: "QEMU emulator version 7.2\n", bad: true},
		{out: "bash: qemu: not found", bad: true},
		{out: "", bad: true},
	} {
		got, err := ParseVersion(tc.out)
		if got != tc.want || (err != nil) != tc.bad {
			t.Errorf("%q: %v, %v", tc.out, got, err)
		}
	}
	for _, v := range []Version{{6, 2, 0}, {7, 1, 99}} {
		if !v.Less(MinVersion) {
			t.Errorf("%v is not older than %v", v, MinVersion)
		}
	}
	for _, v := range []Version{{7, 2, 0}, {7, 2, 22}, {10, 0, 0}} {
		if v.Less(MinVersion) {
			t.Errorf("%v is older than %v", v, MinVersion)
		}
	}
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"plain":               "plain",
		"a\nb\r\n":            `a\nb\n`,
		"\x1b]52;c;AAAA\x07":  `\x1b]52;c;AAAA\x07`,
		`back\slash`:          `back\x5cslash`,
		"bidi \u202e txt.exe": `bidi \xe2\x80\xae txt.exe`,
		"\xff\xfe":            `\xff\xfe`,
		"größe":               "größe",
	} {
		if got := Escape([]byte(in), 100); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
	if got := Escape([]byte("0123456789"), 4); got != "6789" {
		t.Errorf("bound: %q", got)
	}
}
