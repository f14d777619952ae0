// Package audit keeps one log for each guest: JSON lines, each of which holds
// the hash of the one before, so that a line that was changed, taken out or put
// in shows. Several processes append to it under a file lock.
package audit
