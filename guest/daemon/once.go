package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/carrel-vm/carrel/guest"
	"github.com/carrel-vm/carrel/guest/daemon/store"
	"github.com/carrel-vm/carrel/guest/policy"
)

// Of what makes neither a guest nor a task, the key is taken in the index, then it
// is made, then answered in the index. A daemon that died in between has made it or
// not. So what is made knows its key where that is possible:
//
//	a share    what is there already, just so, is the answer
//	a volume   its folder has the key, and is made whole
//	a port     its egress process has the key, as long as it has the port
//	a file     one that is there under its name is the answer if the key was taken
//	           before; else it is in the way

// made is what a request has with it: its key, if any, and what it came with.
type made struct {
	Key     string `json:"key"`
	Request []byte `json:"request"` // the SHA-256
	again   bool   // the key was taken before, and not answered
}

// bareOf is a request without its key.
func bareOf(r proto.Message) (bare proto.Message, key string) {
	bare = proto.Clone(r)
	m := bare.ProtoReflect()
	f := m.Descriptor().Fields().ByName(protoreflect.Name("idempotency_key"))
	if f == nil {
		return bare, ""
	}
	key = m.Get(f).String()
	m.Clear(f)
	return bare, key
}

// once carries a request out once: the first one's answer is everybody's who comes
// with its key. One that failed may be tried again. make is called without a key,
// too.
func once[A any, P interface {
	*A
	proto.Message
}](ctx context.Context, d *Daemon, procedure string, r proto.Message, do func(made) (P, error)) (P, error) {
	bare, key := bareOf(r)
	if key == "" {
		return do(made{})
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	sum, err := guest.Digest(bare)
	if err != nil {
		return nil, err
	}
	done, err := d.turn(ctx, key)
	if err != nil {
		return nil, err
	}
	defer done()
	answer, seen, err := d.index.Key(ctx, key, procedure, sum)
	kept := err == nil
	switch {
	case errors.Is(err, store.ErrReused) || ctx.Err() != nil:
		return nil, indexError(err)
	case err != nil: // what is made knows its key, as long as it is there
		d.log.Warn("an idempotency key is not kept", "error", err)
	case answer != nil:
		out := P(new(A))
		if err := proto.Unmarshal(answer, out); err != nil {
			return nil, fmt.Errorf("read the answer to an idempotency key: %w", err)
		}
		return out, nil
	}
	guest.Crash("once: taken")
	out, err := do(made{Key: key, Request: sum[:], again: seen})
	if err != nil {
		if ferr := d.index.Forget(context.WithoutCancel(ctx), key); kept && ferr != nil {
			d.log.Error("give an idempotency key back", "error", ferr)
		}
		return nil, err
	}
	b, err := proto.Marshal(out)
	if err != nil {
		return nil, err
	}
	guest.Crash("once: made, before its answer is kept")
	if err := d.index.Remember(context.WithoutCancel(ctx), key, b); kept && err != nil {
		d.log.Warn("the answer to an idempotency key is not kept", "error", err)
	}
	guest.Crash("once: its answer kept")
	return out, nil
}

// fileMade is in a volume's folder, if a request with a key made it.
const fileMade = "made.json"

// leave writes down in a folder that is being made what made it.
func (m made) leave(dir string) error {
	if m.Key == "" {
		return nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return policy.WriteFile(filepath.Join(dir, fileMade), b)
}

// left says whether a folder was made by the request; guest.Reused: its key came with
// another one.
func (m made) left(dir string) (bool, error) {
	if m.Key == "" {
		return false, nil
	}
	f, err := os.Open(filepath.Join(dir, fileMade))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	const most = 4 << 10 // bytes; a key has 128 at most
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return false, err
	}
	var by made
	if json.Unmarshal(b, &by) != nil || by.Key != m.Key { // somebody else's, or damaged: then nobody's
		return false, nil
	}
	if !bytes.Equal(by.Request, m.Request) {
		return false, guest.Reused()
	}
	return true, nil
}
