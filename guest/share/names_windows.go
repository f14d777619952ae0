package share

func hostName(b []byte) errno { return windowsName(b) }
