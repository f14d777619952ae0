//go:build cgo

package vz

func (t *translated) Save(path string) error {
	return t.say("save the machine", t.vm.SaveMachineStateToPath(path))
}

func (t *translated) Restore(path string) error {
	return t.say("restore the machine", t.vm.RestoreMachineStateFromURL(path))
}
