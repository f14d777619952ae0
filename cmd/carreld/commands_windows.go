package main

// egressCommand runs a guest's egress process.
func egressCommand(self string) []string { return []string{self, "egress"} }

// shareCommand runs a share process.
func shareCommand(self string) []string { return []string{self, "share"} }

// reviewCommand runs a review process.
func reviewCommand(self string) []string { return []string{self, "review"} }
