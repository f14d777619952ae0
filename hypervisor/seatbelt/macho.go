package seatbelt

import (
	"debug/macho"
	"errors"
	"fmt"
	"os"
)

// runsHere says why a file is no program for macOS on a processor, as Go calls
// it. A carrel-agent for Linux has the same name.
func runsHere(path, arch string) error {
	cpus := map[string]macho.Cpu{"amd64": macho.CpuAmd64, "arm64": macho.CpuArm64}
	want, ok := cpus[arch]
	if !ok {
		return fmt.Errorf("there is no macOS on %s", arch)
	}
	if fi, err := os.Stat(path); err != nil {
		return err
	} else if !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is not a program", path)
	}
	files := []macho.FileHeader{}
	fat, err := macho.OpenFat(path)
	if err == nil {
		defer fat.Close()
		for _, a := range fat.Arches {
			files = append(files, a.FileHeader)
		}
	} else {
		f, err := macho.Open(path)
		if err != nil {
			return fmt.Errorf("%s is not a program of macOS: %w", path, err)
		}
		defer f.Close()
		files = append(files, f.FileHeader)
	}
	for _, f := range files {
		if f.Type == macho.TypeExec && f.Cpu == want {
			return nil
		}
	}
	return errors.New(path + " is a library, or for another processor than this Mac's")
}
