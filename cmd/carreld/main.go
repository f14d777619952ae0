// Command carreld is the host side of Carrel in one file: the daemon, and,
// hidden behind their names, the processes that it is made of.
//
//	carreld daemon    serves the API of one user's guests
//	carreld keep      keeps one guest (started by the daemon)
//	carreld egress    lets one guest reach what it was allowed (started by the daemon)
//	carreld share     serves one shared folder (started by a keeper, or the daemon)
//	carreld unpack    makes a root of an image's layers, once (started by the daemon)
//	carreld review    shows, applies, discards or undoes changes, once (started by the daemon)
//	carreld confine   confines itself and becomes the hypervisor (started by a keeper)
//	carreld doctor    says what a guest needs of this host, where no daemon can (started by carrel doctor)
//	carreld kernel    builds a guest kernel into the cache (make kernel)
//	carreld wall      builds and keeps the process sandbox of a guest (started by a keeper)
package main

import (
	"fmt"
	"os"
	"time"
)

// began is close to this process's first instruction.
var began = time.Now()

func main() {
	verb := "daemon"
	args := os.Args[1:]
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	var err error
	switch verb {
	case "daemon":
		err = runDaemon(args)
	case "keep":
		if err = closeInherited(6); err == nil { // 3 is its request, 4 its word, 5 its link
			err = runKeeper()
		}
	case "egress":
		if err = inherited(args, 6); err == nil { // 3 is its request, 4 its link, 5 its word
			err = runEgress(args)
		}
	case "share":
		if err = inherited(args, 4); err == nil { // 3 is its control socket
			err = runShare(args)
		}
	case "review":
		if err = inherited(args, 5); err == nil { // 3 is its request, 4 its answers
			err = runReview(args)
		}
	case "unpack":
		if err = inherited(args, 7); err == nil { // 3 is its request, 4 its answers, 5 the root that it writes, 6 its spool
			err = runUnpack(args)
		}
	case "confine":
		err = runConfined(args)
	case "wall":
		if err = closeInherited(7); err == nil { // 3 is its spec, 4 its keeper, 5 and 6 the guest's streams
			err = runWall(args)
		}
	case "doctor":
		err = runDoctor()
	case "kernel":
		err = buildKernel(args)
	case "version", "--version":
		fmt.Println("carreld", version().Version, version().Commit)
	default:
		err = fmt.Errorf("unknown command %q (carreld is started by carrel; see carrel daemon --help)", verb)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "carreld:", err)
		os.Exit(125)
	}
}
