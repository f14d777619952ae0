// Command roman prints every numeral, one a line.
package main

import (
	"bufio"
	"fmt"
	"os"

	"example.com/roman"
)

func main() {
	w := bufio.NewWriter(os.Stdout)
	for n := 1; ; n++ {
		s, err := roman.Format(n)
		if err != nil {
			break
		}
		fmt.Fprintln(w, s)
	}
	if err := w.Flush(); err != nil {
		os.Exit(1)
	}
}
