package secret

import (
	"context"
	"os"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"
)

// secrets is the bus name of a Secret Service
// (https://specifications.freedesktop.org/secret-service/).
const secrets = "org.freedesktop.secrets"

// busTime bounds the talk with the session bus, which asks nobody.
const busTime = 15 * time.Second

// keychainAnswers says whether the session bus has a Secret Service, or starts
// one when it is asked. Without a session bus there is none; one is not started.
func keychainAnswers(ctx context.Context) (bool, error) {
	// The library would run dbus-launch for this address.
	if os.Getenv("DBUS_SESSION_BUS_ADDRESS") == "autolaunch:" {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, busTime)
	defer cancel()
	bus, err := dbus.SessionBusPrivateNoAutoStartup(dbus.WithContext(ctx))
	if err != nil {
		return false, nil // no bus
	}
	defer bus.Close()
	if bus.Auth(nil) != nil || bus.Hello() != nil {
		return false, nil // not ours
	}
	var owned bool
	if err := bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, secrets).Store(&owned); err != nil || owned {
		return owned, ctx.Err()
	}
	var names []string
	if err := bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.ListActivatableNames", 0).Store(&names); err != nil {
		return false, ctx.Err()
	}
	return slices.Contains(names, secrets), nil
}
