//go:build bench

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/carrel-vm/carrel/guest/share/rules"
	"github.com/carrel-vm/carrel/hypervisor/qemu"
)

// carrier is one way for a guest to have a folder.
type carrier struct{ name, mount, how string }

// The carriers that are compared in one guest.
var carriers = []carrier{
	{"local", "local:", "ext4 on a disk of the guest's, made as guests' disks are"},
	{"layer", "layer:", "a layer (overlayfs) on that disk over an empty folder of it: what a layer itself costs"},
	{"virtiofsd", "share0", "virtiofsd (C), cache=auto"},
	{"virtiofs", "share1", "our server, `rw` with the rules and pre-images of every share, over virtio-fs"},
	{"vsock", "fuse:live", "our server, `rw` as above, FUSE over vsock"},
	{"review", "review:share2", "our server, `review`: a layer on the guest's disk over the share"},
}

// compared is a ratio of two carriers, with the promise about it.
type compared struct {
	ours, peer string
	goal       limit
}

// carriers compares both carriers, and a share in review, with virtiofsd and with
// a disk of the guest's, in one guest whose caches are cold each time. layers
// alone compares a review's layer with that disk.
func (b *bench) carriers(w *world, layers bool) {
	b.Run("carriers", func(t *testing.T) { // whose end takes the machine down
		sub := *b
		sub.T = t
		if layers {
			sub.compareLayers(w)
		} else {
			sub.compareCarriers(w)
		}
		b.all = sub.all
	})
	if b.Failed() {
		b.FailNow()
	}
}

func (b *bench) compareCarriers(w *world) {
	m := newCarriersMachine(b, w, true)
	files, bulk, said := 20_000, 256<<20, "20,000"
	if b.accel.Name == qemu.TCG {
		files, bulk, said = 2000, 64<<20, "2,000 (20,000 with KVM)"
	}
	size := fmt.Sprintf("%d MiB", bulk>>20)
	if b.accel.Name == qemu.TCG {
		size += " (256 with KVM)"
	}
	var floor []compared
	for _, c := range []string{"virtiofsd", "virtiofs", "vsock", "review"} {
		floor = append(floor, compared{c, "local", limit{}})
	}
	with := func(virtiofs, vsock, review limit) []compared {
		list := append([]compared{{"virtiofs", "virtiofsd", virtiofs}, {"vsock", "virtiofsd", vsock}}, floor...)
		list[len(list)-1].goal = review
		return list
	}
	layered := func(list []compared) []compared {
		return append(list, compared{"layer", "local", limit{}}, compared{"review", "layer", limit{}})
	}
	for _, op := range []struct {
		word  string
		n     int
		units float64
		unit  string
		how   string
		pairs []compared
	}{
		{"write", bulk, float64(bulk >> 20), "MiB/s", size + " to a new file, in blocks of 1 MiB, without fsync", with(limit{}, limit{}, limit{})},
		{"read", bulk, float64(bulk >> 20), "MiB/s", size + " of a file, in blocks of 1 MiB", with(limit{}, limit{}, limit{})},
		{"packages", files, float64(files), "files/s", said + " files of 0.2 to 4 KiB created as npm does, in folders of five", layered(with(least(0.8), least(0.4), least(0.9)))},
		{"git", treeFiles, 1, "per s", "`git status` of a tree of 10,000 files without a change, its index up to date (`core.checkStat=minimal`)", with(limit{}, limit{}, limit{})},
	} {
		var turns []func() float64
		sides := slices.DeleteFunc(slices.Clone(carriers), func(c carrier) bool { return c.name == "layer" && op.word == "git" })
		for _, c := range sides {
			turns = append(turns, func() float64 {
				if op.word == "write" || op.word == "packages" {
					b.clearCarrier(m, c)
				}
				m.do("mount", c.mount, 0)
				took := m.do(op.word, c.mount, op.n)
				m.do("umount", c.mount, 0)
				return op.units / took
			})
		}
		speeds := map[string][]float64{}
		for i, x := range b.rounds(b.n, turns...) {
			speeds[sides[i].name] = x
		}
		how := op.how
		for _, c := range sides {
			b.median("carrier_"+c.name+"_"+op.word, op.unit, speeds[c.name], limit{}, how+"; "+c.how)
			how = "the same"
		}
		for _, p := range op.pairs {
			b.ratio(p.ours+"_over_"+p.peer+"_"+op.word, "carrier_"+p.peer+"_"+op.word, speeds[p.ours], speeds[p.peer], p.goal, "of one round each, in speed")
		}
	}
}

// compareLayers is the packages of compareCarriers, for the disk and what lies on
// it alone: more of them and more rounds, which these can do in the same time.
// The processor time of the machine is taken too, which other work on the host
// does not change.
func (b *bench) compareLayers(w *world) {
	m := newCarriersMachine(b, w, false)
	files, said := 20_000, "20,000"
	if b.accel.Name == qemu.TCG {
		files, said = 4000, "4,000 (20,000 with KVM)"
	}
	sides := []carrier{carriers[0], carriers[1], carriers[5]}
	work := make([][]float64, len(sides))
	var turns []func() float64
	for i, c := range sides {
		turns = append(turns, func() float64 {
			b.clearCarrier(m, c)
			m.do("mount", c.mount, 0)
			before := m.worked()
			took := m.do("packages", c.mount, files)
			work[i] = append(work[i], float64(files)/(m.worked()-before))
			m.do("umount", c.mount, 0)
			return float64(files) / took
		})
	}
	x := b.rounds(b.n, turns...)
	how := said + " files of 0.2 to 4 KiB created as npm does, in folders of five"
	for i, c := range sides {
		work[i] = work[i][1:] // the first round warms up
		b.median("layers_"+c.name+"_packages", "files/s", x[i], limit{}, how+"; "+c.how)
		how = "the same"
		b.median("layers_"+c.name+"_work", "files/s", work[i], limit{}, "the same, for each second of the machine's processor time")
	}
	b.ratio("layers_review_over_local_packages", "layers_local_packages", x[2], x[0], least(0.9), "of one round each, in speed")
	b.ratio("layers_review_over_local_work", "layers_local_work", work[2], work[0], limit{}, "of one round each, by processor time")
	b.ratio("layers_layer_over_local_work", "layers_local_work", work[1], work[0], limit{}, "of one round each, by processor time")
}

// worked is how many seconds of processor time the machine has used.
func (m *benchMachine) worked() float64 {
	m.b.Helper()
	const perSecond = 100 // USER_HZ, of every Linux that Go runs on
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", m.qemu.Process.Pid))
	if err != nil {
		m.b.Fatal(err)
	}
	// After the name, which is in parentheses, come the third field and on; 14
	// and 15 are user's and system's time (proc(5)).
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, err := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	if err := errors.Join(err, err2); err != nil {
		m.b.Fatal(err)
	}
	return (user + system) / perSecond
}

// clearCarrier removes what was made before: on the host where that has it, as
// it takes less time there.
func (b *bench) clearCarrier(m *benchMachine, c carrier) {
	if dir := m.folders[c.name]; dir != "" {
		if err := errors.Join(os.RemoveAll(filepath.Join(dir, "new")), os.RemoveAll(filepath.Join(dir, "bulk"))); err != nil {
			b.Fatal(err)
		}
		return
	}
	m.do("mount", c.mount, 0)
	m.do("clear", c.mount, 0)
	m.do("umount", c.mount, 0)
}

// newCarriersMachine boots a guest with all of them. Each has the same tree, or
// none.
func newCarriersMachine(b *bench, w *world, tree bool) *benchMachine {
	b.Helper()
	folders := b.TempDir()
	if dir := os.Getenv("CARREL_BENCH_MEMORY"); dir != "" {
		folders = dir
	}
	plan := machinePlan{disk: filepath.Join(folders, "disk"), live: filepath.Join(folders, "live")}
	theirs, rw, review := filepath.Join(folders, "c-virtiofsd"), filepath.Join(folders, "c-virtiofs"), filepath.Join(folders, "c-review")
	first := filepath.Join(folders, "c-disk", "root")
	for _, d := range []string{first, theirs, rw, review, plan.live} {
		if !tree {
			if err := os.MkdirAll(d, 0o755); err != nil {
				b.Fatal(err)
			}
			continue
		}
		if d == first {
			b.plantTree(filepath.Join(d, "tree"))
			// Owners and inode numbers differ from one carrier to the next, and what is
			// as old as the index would be read again.
			b.took(exec.Command("find", d, "-exec", "touch", "-d", "2026-01-01", "{}", "+"))
			for _, args := range [][]string{
				{"init", "-q"}, {"config", "core.checkStat", "minimal"}, {"config", "core.trustctime", "false"}, {"add", "."},
				{"-c", "user.name=b", "-c", "user.email=b@example.org", "commit", "-q", "-m", "all"}, {"repack", "-adq"},
			} {
				cmd := exec.Command("git", args...)
				cmd.Dir = filepath.Join(d, "tree")
				b.took(cmd)
			}
			continue
		}
		b.took(exec.Command("cp", "-a", first, d))
	}
	b.took(exec.Command("truncate", "-s", "2G", plan.disk))
	b.took(exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^resize_inode", "-J", "size=32", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", "-d", filepath.Dir(first), plan.disk))
	plan.shares = []planned{
		{theirs, rules.Options{}, true},
		{rw, rules.Options{Mode: rules.ReadWrite}, false},
		{review, rules.Options{Mode: rules.Review}, false},
	}
	m := plan.boot(b)
	m.folders = map[string]string{"virtiofsd": theirs, "virtiofs": rw, "vsock": plan.live}
	return m
}
