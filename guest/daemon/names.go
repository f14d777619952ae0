package daemon

import "math/rand/v2"

// Two words make a name that a person can say: at most 31 bytes.
var (
	firstWords  = []string{"amber", "brisk", "calm", "clear", "cool", "dapper", "early", "fair", "fleet", "fresh", "gentle", "glad", "hazel", "ivory", "jolly", "keen", "kind", "light", "lively", "lucid", "mellow", "merry", "mild", "neat", "nimble", "noble", "plain", "proud", "quick", "quiet", "rapid", "ready", "rosy", "sable", "sage", "sharp", "sleek", "smart", "snug", "solid", "sound", "spry", "still", "sunny", "swift", "tidy", "true", "vivid", "warm", "wise"}
	secondWords = []string{"alcove", "atlas", "binder", "book", "bureau", "candle", "chapter", "clerk", "codex", "column", "desk", "drawer", "easel", "editor", "essay", "fable", "folio", "index", "ink", "lamp", "ledger", "letter", "lectern", "margin", "memo", "note", "novel", "page", "paper", "pen", "pencil", "poem", "primer", "quill", "reader", "ream", "scribe", "scroll", "shelf", "slate", "stack", "stanza", "stool", "study", "stylus", "tome", "tract", "verse", "volume", "writer"}
)

// chooseName returns a free name, or "" when a hundred were taken. d.mu is held.
func (d *Daemon) chooseName() string {
	for range 100 {
		n := firstWords[rand.IntN(len(firstWords))] + "-" + secondWords[rand.IntN(len(secondWords))]
		if d.table[n] == nil {
			return n
		}
	}
	return ""
}
