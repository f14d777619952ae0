package main

// What every user of a Mac may list, and where every user may make a file, until
// a sandbox says otherwise; and a program.
var (
	foreignFolders  = []string{"/Users", "/Applications"}
	writableFolders = []string{"/private/tmp", "/private/var/tmp", "/Users/Shared"}
)

const someProgram = "/usr/bin/true"
