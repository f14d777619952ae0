package main

// machinesBuilt says whether a machine can be started. Its driver is there, and
// the egress and share processes that a guest needs beside it are not.
const machinesBuilt = false
