//go:build carrelnext

package store

// With the tag carrelnext the index is that of a version to come, with one change
// more. The tests of an upgrade build it; no release has it.
func init() { migrations = append(migrations, "ALTER TABLE events ADD COLUMN carrelnext TEXT") }
