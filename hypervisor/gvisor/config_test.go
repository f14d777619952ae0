package gvisor

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestConfig compares what runsc is told with what was looked at by people.
// CARREL_UPDATE=1 writes it anew.
func TestConfig(t *testing.T) {
	shares := []Bind{{"/tmp/share0", false}, {"/tmp/share1", true}}
	for name, p := range map[string]Plan{
		"root": {Name: "g", Root: "/tmp/image", Agent: "/tmp/agent", Shares: shares, Base: 0x70000000, Users: 65536, MemoryMiB: 1024},
		"user": {Name: "g", Root: "/tmp/tree", Agent: "/tmp/agent", MemoryMiB: 512},
	} {
		got, err := Config(p)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		golden := filepath.Join("testdata", name+".golden")
		if os.Getenv("CARREL_UPDATE") != "" {
			if err := os.WriteFile(golden, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v, got\n%s", name, err, got)
		}
	}
}
