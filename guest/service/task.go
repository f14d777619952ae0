package service

import (
	"encoding/binary"
	"errors"
	"unicode/utf16"
)

// TaskName is the task's, in a folder of its own.
const TaskName = `\Carrel\daemon`

// Task is the daemon as a task of Windows's Task Scheduler, started when the user
// logs on, as the user and with no more rights. Folder is where the task's text
// lies, User is DOMAIN\name. It was never run on Windows.
//
// A service of the machine would run as another user, without this one's
// Credential Manager, or with a password that has to be kept. The scheduler holds
// what a task starts in a job object, and ends all of it with schtasks /End, which
// is why nothing here uses that: the daemon is ended through its API.
func Task(o Options) (Unit, error) {
	if err := o.check(); err != nil {
		return Unit{}, err
	}
	if len(o.Env) > 0 {
		return Unit{}, errors.New("a scheduled task has no environment of its own: set the variable for your account, for example with setx CARREL_HOME FOLDER, sign in again, and install without it in this window")
	}
	file := o.Folder + `\daemon-task.xml`
	schtasks := func(args ...string) []string { return append([]string{"schtasks.exe"}, args...) }
	return Unit{
		What: "scheduled task", File: file, Content: utf16Text(taskText(o)),
		Start: [][]string{schtasks("/Create", "/TN", TaskName, "/XML", file, "/F"), schtasks("/Run", "/TN", TaskName)},
		Stop:  [][]string{schtasks("/Delete", "/TN", TaskName, "/F")},
		Notes: []string{"the daemon starts when you log on; guests end when you log off"},
	}, nil
}

// taskText follows the Task Scheduler's schema, version 1.4
// (https://learn.microsoft.com/windows/win32/taskschd/task-scheduler-schema),
// whose elements have an order.
func taskText(o Options) string {
	return `<?xml version="1.0" encoding="UTF-16"?>
<!-- ` + Mark + `; carrel daemon uninstall removes it. -->
<Task version="1.4" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo>
    <Description>Carrel's daemon: guests for untrusted work</Description>
    <URI>` + TaskName + `</URI>
  </RegistrationInfo>
  <Triggers>
    <LogonTrigger>
      <Enabled>true</Enabled>
      <UserId>` + xmlText(o.User) + `</UserId>
    </LogonTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>` + xmlText(o.User) + `</UserId>
      <LogonType>InteractiveToken</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <AllowHardTerminate>false</AllowHardTerminate>
    <StartWhenAvailable>true</StartWhenAvailable>
    <RunOnlyIfNetworkAvailable>false</RunOnlyIfNetworkAvailable>
    <AllowStartOnDemand>true</AllowStartOnDemand>
    <Enabled>true</Enabled>
    <Hidden>false</Hidden>
    <RunOnlyIfIdle>false</RunOnlyIfIdle>
    <WakeToRun>false</WakeToRun>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>5</Priority>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>3</Count>
    </RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>` + xmlText(o.Daemon) + `</Command>
      <Arguments>daemon</Arguments>
    </Exec>
  </Actions>
</Task>
`
}

// utf16Text is s as schtasks reads it: UTF-16 with its mark, lines as Windows
// ends them.
func utf16Text(s string) string {
	out := []byte{0xff, 0xfe}
	for _, c := range utf16.Encode([]rune(s)) {
		if c == '\n' {
			out = binary.LittleEndian.AppendUint16(out, '\r')
		}
		out = binary.LittleEndian.AppendUint16(out, c)
	}
	return string(out)
}
