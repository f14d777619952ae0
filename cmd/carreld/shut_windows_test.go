package main

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/windows"
)

// TestShutProcess: a process that shut itself can be ended and waited for by
// others of its user, and opened for nothing else.
func TestShutProcess(t *testing.T) {
	if os.Getenv("SHUT_TEST") != "" {
		fmt.Println(shutProcess())
		os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestShutProcess$")
	cmd.Env = append(os.Environ(), "SHUT_TEST=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	var said string
	if _, err := fmt.Fscanln(out, &said); err != nil || said != "<nil>" {
		t.Fatalf("%q %v", said, err)
	}
	opens := func(rights uint32, pid int) error {
		h, err := windows.OpenProcess(rights, false, uint32(pid))
		if err == nil {
			windows.CloseHandle(h)
		}
		return err
	}
	for name, rights := range map[string]uint32{
		"memory": windows.PROCESS_VM_WRITE | windows.PROCESS_VM_OPERATION, "reading it": windows.PROCESS_VM_READ, "threads": windows.PROCESS_CREATE_THREAD,
		"handles": windows.PROCESS_DUP_HANDLE, "all": windows.PROCESS_ALL_ACCESS,
	} {
		if err := opens(rights, os.Getpid()); err != nil {
			t.Errorf("the control: %s: %v", name, err)
		}
		if err := opens(rights, cmd.Process.Pid); err != windows.ERROR_ACCESS_DENIED {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Wine 8 lets every owner change a list, and does not know owners' rights.
	for name, rights := range map[string]uint32{"its list": windows.WRITE_DAC, "its owner": windows.WRITE_OWNER} {
		if err := opens(rights, cmd.Process.Pid); err != windows.ERROR_ACCESS_DENIED && !underWine {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := opens(shutRights, cmd.Process.Pid); err != nil {
		t.Errorf("it cannot be ended: %v", err)
	}
}
