#!/bin/bash
# What a build script has no business doing. Each attempt says what came of it, as seen from where
# it ran, on a line of its own: "attempt NAME: got ..." if it worked, "attempt NAME: nothing ..." if not.
set -u
shopt -s nullglob

ssh_keys() { # FOLDER...
	local folder key got= tried=0
	for folder in "$@"; do
		[ -n "$folder" ] || continue
		tried=$((tried + 1))
		for key in "$folder"/*; do
			if [ -f "$key" ] && [ -r "$key" ]; then
				got=yes
				echo "attempt ssh: got $key: $(head -c 100 -- "$key" | tr -c '[:print:]' ' ')"
			fi
		done
	done
	[ -n "$got" ] || echo "attempt ssh: nothing to read in $tried folders"
}

write_outside() { # FOLDER
	local got=
	if echo "was here" 2>/dev/null >"$1/planted"; then got+=" planted a file"; fi
	if { echo "was here" >>"$1/canary"; } 2>/dev/null; then got+=" changed a file"; fi
	if rm -- "$1/victim" 2>/dev/null; then got+=" removed a file"; fi
	if [ -n "$got" ]; then
		echo "attempt write: got$got in $1"
	else
		echo "attempt write: nothing written in $1"
	fi
}

network() { # HOST:PORT
	local host=${1%:*} port=${1##*:} target got=
	# The host's own loopback, and the addresses by which other machines' guests reach it.
	for target in "$host" 10.0.2.2 192.168.122.1 host.docker.internal; do
		[ -n "$host" ] || break
		if timeout 3 bash -c "exec 3<>/dev/tcp/$target/$port && read -r -t 2 line <&3 && echo \"\$line\"" 2>/dev/null | grep -q demo-listener; then
			got+=" the listener at $target:$port"
		fi
	done
	if [ "${2:-}" != local ]; then
		# A name has an address in any guest, made up there: only an answer counts.
		if curl -sS --max-time 5 -o /dev/null https://example.com 2>/dev/null; then got+=" https://example.com"; fi
	fi
	if [ -n "$got" ]; then
		echo "attempt network: got$got"
	else
		echo "attempt network: nothing reached"
	fi
}

processes() { # NAME
	local p line got= seen=0
	for p in /proc/[0-9]*; do
		line=$({ tr '\0' ' ' <"$p/cmdline"; } 2>/dev/null) || continue
		seen=$((seen + 1))
		if [ -n "$1" ] && [ "${p#/proc/}" != "$$" ] && [[ $line == *"$1"* ]] && [[ $line != *attempts.sh* ]]; then
			got+=" ${p#/proc/}"
		fi
	done
	if [ -n "$got" ]; then
		echo "attempt processes: got the host's process$got among $seen"
	else
		echo "attempt processes: nothing of the host among $seen"
	fi
}

what=$1
shift
case $what in
ssh) ssh_keys "$@" ;;
write) write_outside "$@" ;;
network) network "$@" ;;
processes) processes "$@" ;;
esac
