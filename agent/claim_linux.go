package agent

import (
	"errors"
	"fmt"

	"github.com/carrel-vm/carrel/guest/wire"
)

// claimed takes what the host says when somebody gets this guest that was
// started for nobody.
func (a *Agent) claimed(c *wire.Claim) error {
	if err := checkEnv(c.Env); err != nil {
		return err
	}
	a.settling.Wait() // which writes the same files
	if a.settleErr != nil {
		return fmt.Errorf("the guest's settings are not complete: %w", a.settleErr)
	}
	a.mu.Lock()
	again := a.claim != nil
	if !again {
		a.claim = c
	}
	a.mu.Unlock()
	switch {
	case again:
		return errors.New("this guest is somebody's already")
	case a.o.GitHosts != nil && len(c.GitHosts) > 0:
		return a.o.GitHosts(c.GitHosts)
	}
	return nil
}
