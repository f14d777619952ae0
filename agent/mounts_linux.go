package agent

import "github.com/carrel-vm/carrel/agent/machine"

// What the mounts of every guest that is a Linux of its own have in common.
const (
	carrelDir  = machine.CarrelDir
	scratchDir = machine.ScratchDir
	lowerDir   = machine.LowerDir
	upperDir   = machine.UpperDir

	quiet    = machine.Quiet
	fromHost = machine.FromHost
	plain    = machine.Plain

	groupsDir  = machine.GroupsDir
	agentGroup = machine.AgentGroup
	tasksGroup = machine.TasksGroup
)

// mnt is a mount of source, of a type, at target.
func mnt(source, target, fstype string, flags uintptr, data string) machine.Mount {
	return machine.At(source, target, fstype, flags, data)
}
