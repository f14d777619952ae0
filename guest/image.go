package guest

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/carrel-vm/carrel/guest/api"
)

// What an image of a registry says of tasks is taken as `docker run` takes it,
// with one difference: a command that was given is run as it is, and not handed
// to the image's ENTRYPOINT. It is the image author's word about programs in the
// guest; nothing of it reaches the host.

// Bounds of an image's variables, which go to the guest in one frame with the
// certificates that it is to trust. Docker's own images have about ten.
const (
	maxImageEnv      = 512
	maxImageEnvBytes = 256 << 10
)

// guestEnv are the variables of every task that does not set them itself: the
// image's, and over them the placeholders of secrets.
func (k *Keeper) guestEnv() ([]string, error) {
	i := k.req.Parts.Image
	if i == nil {
		return k.req.Env, nil
	}
	var env []string
	size := 0
	for _, e := range i.Env {
		// Where the certificates are is the agent's to say: it adds to them.
		if name, _, _ := strings.Cut(e, "="); slices.Contains(ofAgent, name) || !utf8.ValidString(e) {
			continue
		}
		env = append(env, e)
		size += len(e)
	}
	if len(env) > maxImageEnv || size > maxImageEnvBytes {
		return nil, fmt.Errorf("the image sets %d variables of %d bytes; %d and %d are possible", len(env), size, maxImageEnv, maxImageEnvBytes)
	}
	return slices.Concat(env, k.req.Env), nil
}

// ofAgent are variables by which the agent tells programs of the certificates that
// it has placed; an image's own value would hide these.
var ofAgent = []string{"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "PIP_CERT", "DENO_TLS_CA_STORE"}

// imageUser is whom an image's tasks run as that names nobody.
const imageUser = "0"

// complete fills in what a task leaves to the image.
func (k *Keeper) complete(t *api.TaskSpec) (*api.TaskSpec, error) {
	i := k.req.Parts.Image
	if t == nil || i == nil {
		return t, nil
	}
	t = proto.Clone(t).(*api.TaskSpec)
	if len(t.Argv) == 0 {
		if t.Argv = slices.Concat(i.Entrypoint, i.Cmd); len(t.Argv) == 0 {
			return nil, errors.New("there is no command, and the image has none of its own")
		}
	}
	if t.Workdir == "" && i.WorkingDir != "" {
		t.Workdir = path.Join("/", i.WorkingDir)
	}
	// Where there is one user, every task is that one's.
	if t.User == "" && !k.opts.OneUser {
		if t.User = i.User; t.User == "" {
			t.User = imageUser
		}
	}
	return t, nil
}
