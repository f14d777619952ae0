package place

// Stranger is the error of Dial when what answers is not this user's. Nothing
// was sent to it.
type Stranger struct{ Err error }

func (s *Stranger) Error() string { return s.Err.Error() }

// Unwrap returns what was found out.
func (s *Stranger) Unwrap() error { return s.Err }
