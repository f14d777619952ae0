package review

// settable are the bits of a mode that this host keeps: on Windows a file is one that
// is only read, or it is not.
const settable = 0o200
