package main

// machinesBuilt says whether this program has what drives machines in it.
const machinesBuilt = true
