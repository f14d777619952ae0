package secret

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/zalando/go-keyring"
)

// keychain is the system's, or a test's.
type keychain interface {
	// answers says whether there is a keychain at all. It asks nobody for a
	// password.
	answers(ctx context.Context) (bool, error)
	set(ctx context.Context, item, value string) error
	get(ctx context.Context, item string) (string, error)
	remove(ctx context.Context, item string) error
}

// service is under what name the keychain shows our items.
const service = "carrel"

// keychainTime bounds one question to the keychain. A locked one asks a person
// for its password meanwhile.
const keychainTime = 60 * time.Second

var errNoKeychain = errors.New("there is none in this session, and the value lies in it: log in to the desktop session that it belongs to")

// system is the keychain of this system: the Secret Service on Linux, the
// Keychain on macOS, the Credential Manager on Windows.
type system struct{}

func (system) answers(ctx context.Context) (bool, error) { return keychainAnswers(ctx) }

func (c system) set(ctx context.Context, item, value string) error {
	_, err := c.ask(ctx, func() (string, error) { return "", keyring.Set(service, item, value) })
	if errors.Is(err, keyring.ErrSetDataTooBig) {
		return fmt.Errorf("the system's keychain takes no value of %d bytes: Windows has a limit of 2,560, macOS one of about 3,000 (to keep it in the encrypted file: start the daemon with CARREL_SECRET_STORE=file, and set it under another name)", len(value))
	}
	if err != nil {
		return fmt.Errorf("the system's keychain did not take it: %w (unlock the keychain; where nobody can, start the daemon with CARREL_SECRET_STORE=file for an encrypted file, and use another name)", err)
	}
	return nil
}

func (c system) get(ctx context.Context, item string) (string, error) {
	v, err := c.ask(ctx, func() (string, error) { return keyring.Get(service, item) })
	if errors.Is(err, keyring.ErrNotFound) {
		return "", errors.New("the system's keychain has no such item any more (set the secret again)")
	}
	if err != nil {
		return "", fmt.Errorf("the system's keychain did not give it: %w (unlock the keychain, and try again)", err)
	}
	return v, nil
}

func (c system) remove(ctx context.Context, item string) error {
	_, err := c.ask(ctx, func() (string, error) { return "", keyring.Delete(service, item) })
	if errors.Is(err, keyring.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the system's keychain did not remove it: %w (unlock the keychain, and try again)", err)
	}
	return nil
}

// turn is held by the one question that the keychain is asked at a time. One
// that is never answered keeps it, so that questions cannot pile up.
var turn = make(chan struct{}, 1)

// ask runs f and waits for it, but not longer than a person may take. f goes on
// then, and what it does is lost.
func (c system) ask(ctx context.Context, f func() (string, error)) (string, error) {
	if ok, err := c.answers(ctx); err != nil {
		return "", err
	} else if !ok {
		return "", errNoKeychain // and nobody starts a bus of his own to find out
	}
	return inTime(ctx, keychainTime, f)
}

func inTime(ctx context.Context, limit time.Duration, f func() (string, error)) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	late := func() (string, error) {
		return "", fmt.Errorf("the system's keychain did not answer in time: %w", ctx.Err())
	}
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return late()
	}
	type answer struct {
		value string
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		defer func() { <-turn }()
		v, err := f()
		done <- answer{v, err}
	}()
	select {
	case a := <-done:
		return a.value, a.err
	case <-ctx.Done():
		return late()
	}
}

// Answers says whether this session has a keychain. It asks nobody for a
// password.
func Answers(ctx context.Context) (bool, error) { return keychainAnswers(ctx) }

// always is a keychain that must be there: there is no file in its stead.
type always struct{ keychain }

func (a always) answers(ctx context.Context) (bool, error) {
	ok, err := a.keychain.answers(ctx)
	if err == nil && !ok {
		err = errors.New("the system's keychain does not answer (log in to the desktop session that it belongs to, or start the daemon without CARREL_SECRET_STORE=keychain)")
	}
	return ok, err
}
