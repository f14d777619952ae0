// Package stage is the last step between the agent and a task: a fresh copy of
// the agent's own program that gives up what the task must not have and then
// becomes the task.
//
// Go cannot run code between fork and exec, so the agent starts itself under
// the name [Name]. That copy runs as this package's init function: before the
// rest of the program is set up, which under software emulation is most of the
// cost of starting a command. For the same reason the package imports little.
//
// What the stage does is told by a [Spec] on an inherited file, never by its
// arguments, so that nothing a task can write chooses it.
package stage

// Name is the stage's argv[0].
const Name = "carrel-task"
