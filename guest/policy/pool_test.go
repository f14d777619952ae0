package policy

import (
	"testing"
)

func TestPoolOfAPolicyFile(t *testing.T) {
	f, problems := ParseFile(read(t, "policy/full.yaml"), "policy.yaml")
	if f == nil {
		t.Fatal(Problems("policy.yaml", problems))
	}
	if want := (Pool{Size: 2, Image: "python:3.13", Boundary: "gvisor", CPUs: 1, MemoryMiB: 1024, NoDisk: true}); f.Pool != want {
		t.Errorf("got  %+v\nwant %+v", f.Pool, want)
	}
	if s := f.Pool.Spec("a"); s.DiskMib != 0 || !s.Ephemeral || s.Shares != nil || s.Egress != nil || s.Volumes != nil {
		t.Errorf("%v", s)
	}
	// Without a word there is none, and one that is only switched on is what a run
	// in a folder asks for.
	f, _ = ParseFile([]byte("version: 1\n"), "policy.yaml")
	if f.Pool != (Pool{}) {
		t.Errorf("%+v", f.Pool)
	}
	f, _ = ParseFile([]byte("version: 1\npool: {size: 1}\n"), "policy.yaml")
	g, err := Decide(f.Pool.Spec("a"), Default("/nonexistent"))
	if err != nil {
		t.Fatal(err)
	}
	if s := g.Spec(); s.Cpus != DefaultCPUs || s.MemoryMib != DefaultMemoryMiB || s.DiskMib != DefaultDiskMiB || s.Image != DefaultImage {
		t.Errorf("%v", s)
	}
	// A repository has no say in it.
	if f, _ := ParseRequest([]byte("version: 1\npool: {size: 1}\n"), RequestName); f != nil {
		t.Error("a repository's request may speak of the pool")
	}
}
