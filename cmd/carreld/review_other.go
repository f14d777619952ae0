//go:build !linux

package main

import (
	"errors"
	"os"

	"github.com/carrel-vm/carrel/guest/review"
)

// runReview says honestly that there is no confinement for a review process on
// this host yet, without which there is none.
func runReview() error {
	out := os.NewFile(4, "answers")
	return errors.Join(review.NewAnswers(out).End(errNotHere), out.Close())
}
