package wall

import (
	"context"
	"fmt"

	"github.com/carrel-vm/carrel/hypervisor"
)

// Pause implements hypervisor.VM.
func (v *VM) Pause(ctx context.Context) error { return v.ask(ctx, commandPause, "pause the guest") }

// Resume implements hypervisor.VM.
func (v *VM) Resume(ctx context.Context) error { return v.ask(ctx, commandResume, "resume the guest") }

func (v *VM) ask(ctx context.Context, command byte, op string) error {
	v.command.Lock()
	defer v.command.Unlock()
	v.mu.Lock()
	started := v.proc != nil
	if started {
		v.asked++
		select {
		case <-v.answers: // of one that was given up as it came
		default:
		}
	}
	v.mu.Unlock()
	if !started || v.isGone() {
		return hypervisor.ErrGone
	}
	ctx, cancel := context.WithTimeoutCause(ctx, commandTimeout, fmt.Errorf("no answer within %v", commandTimeout))
	defer cancel()
	by, _ := ctx.Deadline()
	v.control.SetWriteDeadline(by)
	if _, err := v.control.Write([]byte{command}); err != nil { // then no answer comes
		v.mu.Lock()
		v.asked--
		v.mu.Unlock()
		select {
		case <-v.gone: // soon, where the wall has ended
			return hypervisor.ErrGone
		case <-ctx.Done():
			return &hypervisor.Error{Op: op, Err: err}
		}
	}
	select {
	case word := <-v.answers:
		return word.failure()
	case <-v.gone:
		return hypervisor.ErrGone
	case <-ctx.Done():
		return &hypervisor.Error{Op: op, Err: context.Cause(ctx)}
	}
}

// answered takes what the wall says to a command. Of one that was given up it is
// dropped: the next one is not answered by it.
func (v *VM) answered(word Word) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.heard >= v.asked { // nobody has asked
		return
	}
	if v.heard++; v.heard == v.asked {
		select {
		case v.answers <- word: // ask has made room
		default:
		}
	}
}
