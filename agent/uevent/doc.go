// Package uevent waits for the kernel's word that a device has come or changed.
package uevent
