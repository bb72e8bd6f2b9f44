# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# shellcheck disable=SC2154 # the sourcing scripts set limit, stall and run
# What boot.sh and bochs.sh have in common: running an emulator, and saying why it ended.

pid='' watcher=''
# The emulator ends with us, whatever ends us.
# shellcheck disable=SC2317,SC2329 # called by the trap
stop()
{
	[[ -z $pid ]] || kill "$pid" 2>/dev/null || :
	[[ -z $watcher ]] || kill "$watcher" 2>/dev/null || :
	# Their numbers may be others' from now on.
	pid='' watcher=''
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# end_if_silent PID SECONDS MARK FILE...: ends a boot when none of its FILEs has grown for
# SECONDS, and creates MARK. How long a whole boot takes says little about whether it hangs.
end_if_silent()
{
	local pid=$1 limit=$2 mark=$3 heard last='' quiet=0
	shift 3
	while sleep 5 && kill -0 "$pid" 2>/dev/null; do
		heard=$(stat -c %s "$@" 2>/dev/null || :)
		quiet=$((quiet + 5))
		[[ $heard = "$last" ]] || quiet=0
		last=$heard
		if ((quiet >= limit)); then
			touch "$mark"
			kill "$pid"
		fi
	done
}

# emulate FILE... -- COMMAND...: runs the emulator in the toolchain root for at most $limit
# seconds, and until none of the FILEs has grown for $stall seconds. Sets rc to its status.
# It runs in the background, so that the traps run at once.
emulate()
{
	local files=()
	while [[ $1 != -- ]]; do
		files+=("$1")
		shift
	done
	shift
	timeout --foreground --kill-after=5 "$limit" "$TOP/scripts/in-root" "$@" </dev/null &
	pid=$!
	if ((stall)); then
		end_if_silent "$pid" "$stall" "$run/stalled" "${files[@]}" &
		watcher=$!
	fi
	wait "$pid" && rc=0 || rc=$?
	pid=''
	stop
}

# last_words LOG: shows the end of the console, and dies if a limit has ended the emulator.
last_words()
{
	if [[ -e $1 ]]; then
		echo "--- the last lines of $1" >&2
		tail -n 40 "$1" | tr -d '\r' >&2
		echo "---" >&2
	fi
	[[ ! -e $run/stalled ]] ||
		die "the guest has printed nothing for $stall s (--stall), so it hangs; its output is in $run/output, console log: $1"
	((rc != 124 && rc != 137)) || [[ ! -e $run/booted ]] ||
		die "the guest's command did not end within $limit s (--timeout); console log: $1"
	((rc != 124 && rc != 137)) ||
		die "the guest did not boot within $limit s (--timeout); console log: $1"
}
