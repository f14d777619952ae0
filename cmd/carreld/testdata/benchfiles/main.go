// Benchfiles works on files in one folder, in a guest or on a host, whatever
// system that has, and says how many seconds it took: benchfiles write|read|create
// NAME AMOUNT. What starts it is not in the time.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

const block = 1 << 20 // of read and write, in bytes

func main() {
	if len(os.Args) != 4 {
		fail(errors.New("benchfiles write|read|create NAME AMOUNT"))
	}
	name := os.Args[2]
	amount, err := strconv.Atoi(os.Args[3])
	if err != nil {
		fail(err)
	}
	begin := time.Now()
	switch os.Args[1] {
	case "write": // AMOUNT bytes to a new file
		err = write(name, amount)
	case "read": // a file of as many
		err = read(name, amount)
	case "create": // so many files in a new folder
		err = create(name, amount)
	default:
		err = fmt.Errorf("%q is nothing that it does", os.Args[1])
	}
	took := time.Since(begin)
	if err != nil {
		fail(err)
	}
	fmt.Println(took.Seconds())
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func write(name string, size int) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	b := make([]byte, block)
	for ; size > 0 && err == nil; size -= block {
		_, err = f.Write(b[:min(size, block)])
	}
	return errors.Join(err, f.Close())
}

func read(name string, size int) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	got := 0
	for b := make([]byte, block); ; {
		n, err := f.Read(b)
		got += n
		if err == io.EOF && got == size {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%d bytes of %d: %w", got, size, err)
		}
	}
}

func create(dir string, n int) error {
	if err := os.Mkdir(dir, 0o777); err != nil {
		return err
	}
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), []byte("hello world\n"), 0o666); err != nil {
			return err
		}
	}
	return nil
}
