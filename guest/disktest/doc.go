// Package disktest makes the disk fail under a test, on Linux.
package disktest
