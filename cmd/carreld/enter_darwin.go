package main

// sandboxExec is what macOS brings for it.
func sandboxExec(string) string { return "/usr/bin/sandbox-exec" }
