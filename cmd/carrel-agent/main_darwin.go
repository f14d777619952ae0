// Command carrel-agent runs behind a guest's wall, beside the guest's programs.
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 || os.Args[1] != "beside" {
		fmt.Fprintln(os.Stderr, "carrel-agent runs behind a guest's wall, and is started there. To start a guest: carrel run --boundary process -- COMMAND")
		os.Exit(2)
	}
	if err := beside(os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "carrel-agent:", err)
		os.Exit(1)
	}
}
