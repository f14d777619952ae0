package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/carrel-vm/carrel/images/bundle"
	"github.com/carrel-vm/carrel/images/oci"
)

// Build makes the image called o.Name, or returns it if it is already made of the same things.
//
//  1. One build at a time in a store; a second waits, and then mostly finds its work done.
//  2. kernel and root come from the cache, or from their recipes (see entry).
//  3. The initrd is written from the agent.
//  4. Parts and manifest come together in a private folder, which takes the image's place in one
//     step: whoever looks sees the old image or the new one.
//
// An interrupted build leaves a folder in tmp/, which the next build removes.
func (s *Store) Build(ctx context.Context, o BuildOptions) (*Image, error) {
	if err := CheckName(o.Name); err != nil {
		return nil, err
	}
	if o.Arch == "" {
		o.Arch = runtime.GOARCH
	}
	if !slices.Contains(bundle.Archs, o.Arch) {
		return nil, fmt.Errorf("build image %s: %w: there is none for %.40q, only for %s", o.Name, ErrArch, o.Arch, strings.Join(bundle.Archs, " and "))
	}
	if o.Progress == nil {
		o.Progress = func(Event) {}
	}
	agent, err := oci.OpenRegular(AgentFor(o.Agent, o.Arch))
	if err != nil {
		return nil, fmt.Errorf("build image %s: agent: %w (make %s)", o.Name, err, makesAgent(o.Arch))
	}
	defer agent.Close()
	if err := checkAgent(agent, o.Arch); err != nil {
		return nil, fmt.Errorf("build image %s: %w", o.Name, err)
	}
	lock, err := s.lockFile(ctx, func() {
		o.Progress(Event{Stage: "wait", Line: "another build is under way in " + s.cache})
	})
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if old, err := s.load(o.Name); err == nil && old.Manifest.Arch != o.Arch {
		return nil, fmt.Errorf("build image %s: %w: the image of that name is for %s, and a new one for %s would take its place (choose another name, or carrel image rm %s)",
			o.Name, ErrArch, old.Manifest.Arch, o.Arch, o.Name)
	}
	img, err := s.build(ctx, o, agent, lock)
	if err != nil {
		return nil, fmt.Errorf("build image %s: %w", o.Name, err)
	}
	return img, nil
}

// makesAgent is the target of the Makefile that makes the agent.
func makesAgent(arch string) string {
	if arch == runtime.GOARCH {
		return "build"
	}
	return "agent-" + arch
}

func (s *Store) build(ctx context.Context, o BuildOptions, agent, lock *os.File) (*Image, error) {
	recipes, done, err := s.recipes(o.Recipes)
	if err != nil {
		return nil, err
	}
	defer done()
	b := &builder{store: s, progress: o.Progress, lock: lock, arch: o.Arch}
	kernel, err := b.kernel(ctx, recipes)
	if err != nil {
		return nil, err
	}
	root, err := b.entry(ctx, b.kind("root"), filepath.Join(recipes, "default"), Root, "packages", "tools", "uncompressed")
	if err != nil {
		return nil, err
	}
	agentSum, agentSize, err := hashReader(ctx, io.NewSectionReader(agent, 0, maxAgent))
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	in := Inputs{Kernel: kernel.key, Root: root.key, Agent: agentSum, Initrd: initrdVersion}
	if old, err := s.Get(ctx, o.Name); err == nil && old.Manifest.Inputs == in && old.Bundle == nil {
		o.Progress(Event{Stage: "image", Done: 1, Total: 1, Line: "unchanged"})
		return old, nil
	}
	m := &Manifest{
		Version: manifestVersion, Name: o.Name, Created: time.Now().UTC().Format(time.RFC3339),
		Arch: o.Arch, Inputs: in,
	}
	if err := describe(m, kernel, root); err != nil {
		return nil, err
	}
	if err := s.assemble(ctx, o, m, kernel, root, io.NewSectionReader(agent, 0, agentSize)); err != nil {
		return nil, err
	}
	s.prune(time.Now())
	o.Progress(Event{Stage: "image", Done: 1, Total: 1, Line: "complete"})
	return s.Get(ctx, o.Name)
}

// describe fills the manifest with what the recipes said about their results.
func describe(m *Manifest, kernel, root *entry) error {
	text := func(e *entry, name string) (string, error) {
		b, err := readSmall(filepath.Join(e.dir, name), maxManifest)
		return strings.TrimSpace(string(b)), err
	}
	release, err1 := text(kernel, "release")
	packages, err2 := text(root, "packages")
	tools, err3 := text(root, "tools")
	size, err4 := text(root, "uncompressed")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return fmt.Errorf("root: uncompressed: %w", err)
	}
	m.KernelVersion, m.RootUncompressed = release, n
	m.Packages, m.Tools = items(packages), items(tools)
	m.Parts = []Part{
		{Name: Kernel, SHA256: kernel.files[Kernel].SHA256, Size: kernel.files[Kernel].Size, Compressed: true},
		{Name: Initrd},
		{Name: Root, SHA256: root.files[Root].SHA256, Size: root.files[Root].Size, Compressed: true},
	}
	return nil
}

// items reads "name version" lines.
func items(s string) []Item {
	var all []Item
	for line := range strings.Lines(s) {
		if name, version, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			all = append(all, Item{Name: name, Version: version})
		}
	}
	return all
}

// assemble puts the image together in a private folder and then in its place.
func (s *Store) assemble(ctx context.Context, o BuildOptions, m *Manifest, kernel, root *entry, agent *io.SectionReader) error {
	o.Progress(Event{Stage: "initrd", Total: 1, Line: "writing the initrd"})
	tmp, err := s.temp("image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	dir := filepath.Join(tmp, "new")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, Initrd), func(f *os.File) error { return writeInitrd(f, agent, agent.Size()) }); err != nil {
		return err
	}
	p := &m.Parts[1]
	if p.SHA256, p.Size, err = hashFile(ctx, filepath.Join(dir, Initrd)); err != nil {
		return err
	}
	o.Progress(Event{Stage: "initrd", Done: 1, Total: 1, Line: fmt.Sprintf("%d bytes", p.Size)})
	for name, e := range map[string]*entry{Kernel: kernel, Root: root} {
		if err := linkOrCopy(filepath.Join(e.dir, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := m.check(); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(dir, manifestName), func(f *os.File) error { _, err := f.Write(append(text, '\n')); return err }); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.cache, "images"), 0o700); err != nil {
		return err
	}
	free, err := s.alone(ctx, m.Name, startPatience) // a guest starts from the old image, or the new one
	if err != nil {
		return err
	}
	defer free()
	if err := ctx.Err(); err != nil {
		return err
	}
	return replace(dir, s.dir(m.Name))
}

// replace puts the folder from at the place to in one step, and what was there at from.
func replace(from, to string) error {
	if err := syncFolder(from); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		err = os.Rename(from, to)
	}
	if err != nil {
		return fmt.Errorf("put %s in its place: %w", to, err)
	}
	return syncFolder(filepath.Dir(to))
}
