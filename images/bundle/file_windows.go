package bundle

// modes says whether a file's mode says who may read it: here a list of rights does.
const modes = false

// syncFolder has nothing to do here: NTFS logs names, and a folder cannot be flushed.
func syncFolder(string) error { return nil }
