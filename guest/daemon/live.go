package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
	"github.com/carrel-vm/carrel/guest/policy"
)

// fileEgress is the file in a guest's folder that holds what was changed about
// its egress since it was made. It is replaced whole.
const fileEgress = "egress.json"

// Bounds of the file.
const (
	maxLive     = 1024    // rules of each kind
	maxLiveFile = 4 << 20 // bytes
)

// live are the changes of one guest: they outlive restarts of everything, and
// go with the guest.
type live struct {
	// added hold beside what was granted.
	added []*api.EgressRule
	// removed are taken from what was granted, but never from policy.yaml's own
	// rules: that file is the user's word for all guests.
	removed []*api.EgressRule
}

type liveFile struct {
	Version int               `json:"version"`
	Added   []json.RawMessage `json:"added,omitempty"`
	Removed []json.RawMessage `json:"removed,omitempty"`
}

// loadLive reads a guest's changes; none is no error, and damage is.
func loadLive(dir string) (*live, error) {
	path := filepath.Join(dir, fileEgress)
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return &live{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	bad := func(err error) (*live, error) {
		return nil, fmt.Errorf("read the guest's egress rules: %s: %w (repair the file, or remove it and allow again)", path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxLiveFile+1))
	if err != nil {
		return bad(err)
	}
	var raw liveFile
	if err := json.Unmarshal(b, &raw); err != nil {
		return bad(err)
	}
	if raw.Version != 1 {
		return bad(fmt.Errorf("it is of format %d, and this version knows 1", raw.Version))
	}
	l := &live{}
	for _, part := range []struct {
		raw []json.RawMessage
		to  *[]*api.EgressRule
	}{{raw.Added, &l.added}, {raw.Removed, &l.removed}} {
		for _, m := range part.raw {
			r := new(api.EgressRule)
			if err := protojson.Unmarshal(m, r); err != nil {
				return bad(err)
			}
			*part.to = append(*part.to, r)
		}
	}
	for _, r := range l.added {
		if err := policy.CheckRule(r); err != nil {
			return bad(err)
		}
	}
	return l, nil
}

// save replaces the file; it is there whole or as it was.
func (l *live) save(dir string) error {
	raw := liveFile{Version: 1}
	for _, part := range []struct {
		from []*api.EgressRule
		raw  *[]json.RawMessage
	}{{l.added, &raw.Added}, {l.removed, &raw.Removed}} {
		for _, r := range part.from {
			b, err := protojson.Marshal(r)
			if err != nil {
				return err
			}
			*part.raw = append(*part.raw, b)
		}
	}
	b, err := json.MarshalIndent(raw, "", " ")
	if err != nil {
		return err
	}
	return policy.WriteFile(filepath.Join(dir, fileEgress), b)
}

// alike says whether two rules are the same one to somebody who takes it away:
// of the same action, host and ports.
func alike(a, b *api.EgressRule) bool {
	return a.Action == b.Action && strings.EqualFold(a.Host, b.Host) && slices.Equal(portsOf(a), portsOf(b))
}

func portsOf(r *api.EgressRule) []uint32 {
	if len(r.Ports) == 0 && r.Action != api.EgressAction_EGRESS_ACTION_DENY {
		return []uint32{443}
	}
	ps := slices.Clone(r.Ports)
	slices.Sort(ps)
	return ps
}

// same says whether two rules are one and the same, wherever they come from.
func same(a, b *api.EgressRule) bool {
	a, b = proto.Clone(a).(*api.EgressRule), proto.Clone(b).(*api.EgressRule)
	a.Origin, b.Origin = "", ""
	return proto.Equal(a, b)
}

// change applies a request to what was changed before.
func (l *live) change(add, remove []*api.EgressRule) error {
	for _, r := range remove {
		l.added = slices.DeleteFunc(l.added, func(x *api.EgressRule) bool { return alike(x, r) })
		if !slices.ContainsFunc(l.removed, func(x *api.EgressRule) bool { return alike(x, r) }) {
			l.removed = append(l.removed, r)
		}
	}
	for _, r := range add {
		l.removed = slices.DeleteFunc(l.removed, func(x *api.EgressRule) bool { return alike(x, r) })
		if !slices.ContainsFunc(l.added, func(x *api.EgressRule) bool { return same(x, r) }) {
			l.added = append(l.added, r)
		}
	}
	if len(l.added) > maxLive || len(l.removed) > maxLive {
		return fmt.Errorf("there are more than %d rules of this guest's own; write them into policy.yaml", maxLive)
	}
	return nil
}

// apply returns the rules in effect: those that were granted, with the changes.
func (l *live) apply(granted []*api.EgressRule) []*api.EgressRule {
	out := make([]*api.EgressRule, 0, len(granted)+len(l.added))
	for _, r := range granted {
		taken := slices.ContainsFunc(l.removed, func(x *api.EgressRule) bool { return alike(x, r) })
		if !taken || ofUser(r) {
			out = append(out, r)
		}
	}
	return append(out, l.added...)
}

// ofUser says whether a rule stands in the user's policy file.
func ofUser(r *api.EgressRule) bool { return strings.HasPrefix(r.Origin, policyFile) }

// policyFile is the name of the user's policy, in the config folder.
const policyFile = "policy.yaml"
