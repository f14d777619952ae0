// Package hcs makes guests with the Host Compute Service of Windows: the part of
// Hyper-V under containers and WSL, which Windows Home has too.
//
// What is pure (the description of a guest, the meanings of failures, virtual
// disks, what a host lacks) compiles and is tested everywhere; computecore.dll is
// called in one file. No real HCS has run any of it yet: docs/hcs.md says for each
// part what it was tried with.
package hcs
