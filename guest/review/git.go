package review

import (
	"context"
	"errors"
)

func (t *Target) ImportGit(ctx context.Context, guest string, dryRun bool, tell func(Event) error) error {
	return errors.ErrUnsupported
}
