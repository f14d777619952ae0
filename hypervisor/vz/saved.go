package vz

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Files of a saved guest's folder. The state is the guest's memory: whoever can
// read it can read what the guest knew.
const (
	fileState    = "state"
	fileIdentity = "machine"
	filePlan     = "plan.json"
)

// Bounds of what is read of a saved guest, in bytes.
const (
	maxIdentity = 4 << 10
	maxPlan     = 1 << 20
)

// Save pauses a guest and writes it into a folder of its own, which is made, and
// which is removed if that fails. The guest stays paused. Its streams do not
// survive, so whoever goes on with it finds an agent that has lost its host: no
// part of Carrel does so yet.
func (v *VM) Save(ctx context.Context, dir string) (err error) {
	if err := v.plan.Savable(v.host); err != nil {
		return err
	}
	op := func(err error) error { return &hypervisor.Error{Op: "save the guest", Err: err} }
	if len(v.identity) == 0 {
		return op(errors.New("its machine has no identifier, without which it could not go on"))
	}
	plan, err := json.Marshal(v.plan)
	if err != nil {
		return op(err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return op(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	for name, b := range map[string][]byte{fileIdentity: v.identity, filePlan: plan} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return op(err)
		}
	}
	if err := v.Pause(ctx); err != nil {
		return err
	}
	if err := v.await(ctx, "save the guest", func() error { return v.m.Save(filepath.Join(dir, fileState)) }); err != nil {
		return err
	}
	// The guest's memory is nobody else's to read.
	if err := os.Chmod(filepath.Join(dir, fileState), 0o600); err != nil {
		return op(err)
	}
	return nil
}

// readSaved returns a saved machine's identifier and the path of its state, if it
// was saved from the same plan.
func readSaved(dir string, p Plan, h Host) (identity []byte, state string, err error) {
	op := func(err error) error {
		return &hypervisor.Error{Op: "go on with the saved guest", Err: err, Cure: "start it afresh: its disk is as it was when it was saved"}
	}
	if err := p.Savable(h); err != nil {
		return nil, "", op(err)
	}
	plan, err := readBounded(filepath.Join(dir, filePlan), maxPlan)
	if err != nil {
		return nil, "", op(err)
	}
	want, err := json.Marshal(p)
	if err != nil {
		return nil, "", op(err)
	}
	if !bytes.Equal(plan, want) {
		return nil, "", op(errors.New("it was saved from a machine with other devices, files or sizes"))
	}
	if identity, err = readBounded(filepath.Join(dir, fileIdentity), maxIdentity); err != nil {
		return nil, "", op(err)
	}
	if len(identity) == 0 { // the module would read beyond it
		return nil, "", op(errors.New("its machine's identifier is empty"))
	}
	state = filepath.Join(dir, fileState)
	if fi, err := os.Lstat(state); err != nil || !fi.Mode().IsRegular() {
		return nil, "", op(errors.Join(err, fmt.Errorf("%s is no state of a machine", state)))
	}
	return identity, state, nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return b, err
}
