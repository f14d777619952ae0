package share

// Cloud drives leave placeholders: entries whose contents come over the network when somebody reads them, and whose removal is
// carried out in the cloud. A guest sees that they are there. Reading one is ENODATA and fetches nothing, and removing or
// replacing one is EPERM; the host's user makes them available first, or removes them. Linux has no such mark.

// dataless knows one by its flags on macOS: SF_DATALESS of sys/stat.h.
func dataless(flags uint32) bool { return flags&0x40000000 != 0 }

// recalled knows one by its attributes on Windows: FILE_ATTRIBUTE_OFFLINE, _RECALL_ON_OPEN and _RECALL_ON_DATA_ACCESS of winnt.h.
func recalled(attributes uint32) bool { return attributes&(0x1000|0x40000|0x400000) != 0 }
