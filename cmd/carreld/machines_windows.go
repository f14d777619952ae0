package main

// machinesBuilt says whether a machine can be started.
const machinesBuilt = true
