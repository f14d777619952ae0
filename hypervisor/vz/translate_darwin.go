//go:build cgo

package vz

import (
	"errors"
	"fmt"
	"net"

	"github.com/Code-Hex/vz/v3"
)

// translate makes a plan's machine, with the identifier of a saved one or, if that
// is empty, a new one, which it returns.
func translate(p Plan, identity []byte, pp *pipes) (machine, []byte, error) {
	boot, err := vz.NewLinuxBootLoader(p.Kernel, vz.WithCommandLine(p.Cmdline), vz.WithInitrd(p.Initrd))
	if err != nil {
		return nil, nil, explain("set the kernel", err)
	}
	c, err := vz.NewVirtualMachineConfiguration(boot, p.CPUs, p.Memory)
	if err != nil {
		return nil, nil, explain("configure the machine", err)
	}
	if p.Identity {
		if identity, err = setIdentity(c, identity); err != nil {
			return nil, nil, explain("identify the machine", err)
		}
	}
	if err := setDisks(c, p.Disks); err != nil {
		return nil, nil, err
	}
	if err := setShares(c, p.Shares); err != nil {
		return nil, nil, err
	}
	if err := setRest(c, pp); err != nil {
		return nil, nil, explain("configure the machine's devices", err)
	}
	if ok, err := c.Validate(); err != nil || !ok {
		if err == nil {
			err = errors.New("macOS finds it invalid and does not say why")
		}
		return nil, nil, explain("configure the machine", err)
	}
	m, err := vz.NewVirtualMachine(c)
	if err != nil {
		return nil, nil, explain("make the machine", err)
	}
	t := &translated{vm: m, pipes: pp, states: make(chan State)}
	go t.follow() // as long as the process lives: the module never closes its channel
	return t, identity, nil
}

func setIdentity(c *vz.VirtualMachineConfiguration, identity []byte) ([]byte, error) {
	var id *vz.GenericMachineIdentifier
	var err error
	if len(identity) > 0 {
		id, err = vz.NewGenericMachineIdentifierWithData(identity)
	} else {
		id, err = vz.NewGenericMachineIdentifier()
	}
	if err != nil {
		return nil, err
	}
	platform, err := vz.NewGenericPlatformConfiguration(vz.WithGenericMachineIdentifier(id))
	if err != nil {
		return nil, err
	}
	c.SetPlatformVirtualMachineConfiguration(platform)
	return append([]byte(nil), id.DataRepresentation()...), nil // the module's is Objective-C's memory
}

var syncModes = map[Sync]vz.DiskImageSynchronizationMode{
	SyncNone: vz.DiskImageSynchronizationModeNone, SyncFile: vz.DiskImageSynchronizationModeFsync, SyncDrive: vz.DiskImageSynchronizationModeFull,
}

func setDisks(c *vz.VirtualMachineConfiguration, disks []Disk) error {
	var all []vz.StorageDeviceConfiguration
	for _, d := range disks {
		op := "attach " + d.Path
		mode, ok := syncModes[d.Sync]
		if !ok {
			return explain(op, fmt.Errorf("there is no way %q to synchronise a disk", d.Sync))
		}
		a, err := vz.NewDiskImageStorageDeviceAttachmentWithCacheAndSync(d.Path, d.ReadOnly, vz.DiskImageCachingModeCached, mode)
		if err != nil {
			return explain(op, err)
		}
		b, err := vz.NewVirtioBlockDeviceConfiguration(a)
		if err != nil {
			return explain(op, err)
		}
		if d.Serial != "" {
			if err := b.SetBlockDeviceIdentifier(d.Serial); err != nil {
				return explain(op, err)
			}
		}
		all = append(all, b)
	}
	c.SetStorageDevicesVirtualMachineConfiguration(all)
	return nil
}

func setShares(c *vz.VirtualMachineConfiguration, shares []Device) error {
	var all []vz.DirectorySharingDeviceConfiguration
	for _, s := range shares {
		op := "share " + s.Path
		dir, err := vz.NewSharedDirectory(s.Path, s.ReadOnly)
		if err != nil {
			return explain(op, err)
		}
		single, err := vz.NewSingleDirectoryShare(dir)
		if err != nil {
			return explain(op, err)
		}
		fs, err := vz.NewVirtioFileSystemDeviceConfiguration(s.Tag)
		if err != nil {
			return explain(op, err)
		}
		fs.SetDirectoryShare(single)
		all = append(all, fs)
	}
	if len(all) > 0 {
		c.SetDirectorySharingDevicesVirtualMachineConfiguration(all)
	}
	return nil
}

// setRest sets the devices that every guest has.
func setRest(c *vz.VirtualMachineConfiguration, pp *pipes) error {
	port, err := vz.NewFileHandleSerialPortAttachment(pp.read, pp.write)
	if err != nil {
		return err
	}
	serial, err := vz.NewVirtioConsoleDeviceSerialPortConfiguration(port)
	if err != nil {
		return err
	}
	c.SetSerialPortsVirtualMachineConfiguration([]*vz.VirtioConsoleDeviceSerialPortConfiguration{serial})
	entropy, err := vz.NewVirtioEntropyDeviceConfiguration()
	if err != nil {
		return err
	}
	c.SetEntropyDevicesVirtualMachineConfiguration([]*vz.VirtioEntropyDeviceConfiguration{entropy})
	balloon, err := vz.NewVirtioTraditionalMemoryBalloonDeviceConfiguration()
	if err != nil {
		return err
	}
	c.SetMemoryBalloonDevicesVirtualMachineConfiguration([]vz.MemoryBalloonDeviceConfiguration{balloon})
	socket, err := vz.NewVirtioSocketDeviceConfiguration()
	if err != nil {
		return err
	}
	c.SetSocketDevicesVirtualMachineConfiguration([]vz.SocketDeviceConfiguration{socket})
	return nil
}

// translated is a machine of the module's.
type translated struct {
	vm     *vz.VirtualMachine
	pipes  *pipes // whose descriptors the machine uses: they must not be collected
	states chan State
}

var states = map[vz.VirtualMachineState]State{
	vz.VirtualMachineStateRunning: Running, vz.VirtualMachineStatePaused: Paused,
	vz.VirtualMachineStateStopped: Stopped, vz.VirtualMachineStateError: Failed,
}

func (t *translated) follow() {
	for s := range t.vm.StateChangedNotify() {
		t.states <- states[s] // what is not in the table is Between
	}
}

func (t *translated) Start() error  { return t.say("start the machine", t.vm.Start()) }
func (t *translated) Pause() error  { return t.say("pause the machine", t.vm.Pause()) }
func (t *translated) Resume() error { return t.say("resume the machine", t.vm.Resume()) }
func (t *translated) Stop() error   { return t.say("stop the machine", t.vm.Stop()) }

func (t *translated) RequestStop() error {
	ok, err := t.vm.RequestStop()
	if err == nil && !ok {
		err = errors.New("macOS could not ask it")
	}
	return t.say("ask the machine to stop", err)
}

func (t *translated) say(op string, err error) error {
	if err == nil {
		return nil
	}
	return explain(op, err)
}

func (t *translated) States() <-chan State { return t.states }

func (t *translated) socket() (*vz.VirtioSocketDevice, error) {
	all := t.vm.SocketDevices()
	if len(all) != 1 {
		return nil, fmt.Errorf("the machine has %d vsock devices, not one", len(all))
	}
	return all[0], nil
}

func (t *translated) Connect(port uint32) (stream, error) {
	s, err := t.socket()
	if err != nil {
		return nil, err
	}
	c, err := s.Connect(port)
	if err != nil {
		return nil, explain("connect", err)
	}
	return newConnection(c)
}

func (t *translated) Listen(port uint32) (acceptor, error) {
	s, err := t.socket()
	if err != nil {
		return nil, err
	}
	l, err := s.Listen(port)
	if err != nil {
		return nil, explain("listen", err)
	}
	return accepting{l}, nil
}

type accepting struct{ *vz.VirtioSocketListener }

func (a accepting) Accept() (stream, error) {
	c, err := a.AcceptVirtioSocketConnection()
	if err != nil {
		return nil, err
	}
	return newConnection(c)
}

// connection is the socket inside of a connection of the module's.
type connection struct {
	net.Conn
	halves interface{ CloseWrite() error }
}

func newConnection(c *vz.VirtioSocketConnection) (stream, error) {
	raw, err := inner[net.Conn](c, "rawConn")
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	halves, ok := raw.(interface{ CloseWrite() error })
	if !ok {
		return nil, errors.Join(fmt.Errorf("a connection is a %T, one direction of which cannot be ended", raw), c.Close())
	}
	return connection{raw, halves}, nil
}

func (c connection) CloseWrite() error { return c.halves.CloseWrite() }

// Each line compiles only as long as our number is the module's.
var (
	_         = [1]struct{}{}[vz.ErrorInternal-codeInternal]
	_         = [1]struct{}{}[vz.ErrorInvalidVirtualMachineConfiguration-codeConfiguration]
	_         = [1]struct{}{}[vz.ErrorInvalidDiskImage-codeDiskImage]
	_         = [1]struct{}{}[vz.ErrorVirtualMachineLimitExceeded-codeLimit]
	_         = [1]struct{}{}[vz.ErrorOutOfDiskSpace-codeNoSpace]
	_         = [1]struct{}{}[vz.ErrorSave-codeSave]
	_         = [1]struct{}{}[vz.ErrorRestore-codeRestore]
	_ machine = (*translated)(nil)
)
