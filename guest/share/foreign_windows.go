package share

import (
	"errors"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// MarkForeign marks the file as one that came from a guest. The stream is
// opened beneath the file's own handle, so that no path is walked again; a file
// system without streams has no place for the mark. It was compiled for Windows
// and never ran there: Wine has no streams, and says so.
func (h *Handle) MarkForeign(time.Time) error {
	f, is := h.f.(*rootFile)
	if !is {
		return nil
	}
	c, err := f.f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = c.Control(func(fd uintptr) {
		if failed = writeStream(windows.Handle(fd), zoneStream, zoneIdentifier); failed != nil && streamless(windows.Handle(fd)) {
			failed = nil
		}
	})
	if err != nil {
		return err
	}
	if errors.Is(failed, windows.STATUS_OBJECT_NAME_INVALID) || errors.Is(failed, windows.STATUS_INVALID_PARAMETER) || errors.Is(failed, windows.STATUS_NOT_SUPPORTED) {
		return nil
	}
	return failed
}

// streamless says that the file system which a file is in has no named streams, by
// its own word.
func streamless(file windows.Handle) bool {
	var flags uint32
	err := windows.GetVolumeInformationByHandle(file, nil, 0, nil, nil, &flags, nil, 0)
	return err == nil && flags&windows.FILE_NAMED_STREAMS == 0
}

func writeStream(file windows.Handle, name, content string) error {
	n, err := windows.NewNTUnicodeString(name)
	if err != nil {
		return err
	}
	attributes := &windows.OBJECT_ATTRIBUTES{RootDirectory: file, ObjectName: n}
	attributes.Length = uint32(unsafe.Sizeof(*attributes))
	var stream windows.Handle
	var status windows.IO_STATUS_BLOCK
	if err := windows.NtCreateFile(&stream, windows.FILE_GENERIC_WRITE, attributes, &status, nil, windows.FILE_ATTRIBUTE_NORMAL, 0,
		windows.FILE_OVERWRITE_IF, windows.FILE_NON_DIRECTORY_FILE|windows.FILE_SYNCHRONOUS_IO_NONALERT, 0, 0); err != nil {
		return err
	}
	var written uint32
	err = windows.WriteFile(stream, []byte(content), &written, nil)
	return errors.Join(err, windows.CloseHandle(stream))
}
