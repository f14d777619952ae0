package service

import "os/user"

// Here is this system's unit for a daemon at that path, whose state lies in that
// folder.
func Here(daemon string, env []string, state string) (Unit, error) {
	me, err := user.Current()
	if err != nil {
		return Unit{}, err
	}
	return Task(Options{Daemon: daemon, Folder: state, Env: env, User: me.Username})
}
