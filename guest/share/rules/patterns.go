package rules

// Patterns returns the patterns of both lists in the order in which they count,
// the built-in ones first: for a wall that judges names by itself, and cannot
// ask a Set about each.
func (o Options) Patterns() (hide, protect []string) {
	if o.Plain {
		return nil, nil
	}
	all := func(builtIn []because, own []List) (out []string) {
		for _, b := range builtIn {
			out = append(out, b.pattern)
		}
		for _, l := range own {
			out = append(out, l.Pattern)
		}
		return out
	}
	return all(hidden, o.Hide), all(protected, o.Protect)
}
