package hcs

// These are the parts of schema 2 that a guest of ours has; the whole is at
// https://learn.microsoft.com/virtualization/api/hcs/schemareference.

// Version is one of the schema.
type Version struct{ Major, Minor int }

type computeSystem struct {
	Owner                             string
	SchemaVersion                     Version
	ShouldTerminateOnLastHandleClosed bool
	VirtualMachine                    virtualMachine
}

type virtualMachine struct {
	StopOnReset     bool
	Chipset         chipset
	ComputeTopology topology
	Devices         devices
}

type chipset struct {
	LinuxKernelDirect *linuxKernel `json:",omitempty"`
	Uefi              *uefi        `json:",omitempty"`
}

type linuxKernel struct{ KernelFilePath, InitRdPath, KernelCmdLine string }

type uefi struct{ BootThis uefiBoot }

type uefiBoot struct{ DeviceType, VmbFsRootPath, DevicePath, OptionalData string }

type topology struct {
	Memory    memory
	Processor processor
}

type memory struct {
	SizeInMB                                                     uint64
	AllowOvercommit, EnableDeferredCommit, EnableColdDiscardHint bool
}

type processor struct{ Count uint32 }

type devices struct {
	Scsi     map[string]scsi
	ComPorts map[string]comPort
	HvSocket hvSocket
}

type scsi struct{ Attachments map[string]attachment }

type attachment struct {
	Type, Path string
	ReadOnly   bool `json:",omitempty"`
}

type comPort struct{ NamedPipe string }

type hvSocket struct{ HvSocketConfig hvSocketConfig }

type hvSocketConfig struct {
	DefaultBindSecurityDescriptor    string
	DefaultConnectSecurityDescriptor string
}
