#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# How long emulated work takes on this machine, in percent of what it takes on the
# machine that the lab's limits are for: build/stamp/speed, which scaled() in lib.sh
# applies. At least 100 (a faster machine has the same limits), at most 400. Two boots run
# side by side, as they do in 'make test', and the slower one counts.
#   calibrate.sh           measure, and say what came out
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../scripts/lib.sh"

# What the loop takes in the emulator on that machine, in ms: a machine on which the lab's
# kernel takes 26 minutes instead of 12 takes 25,000 when it does nothing else.
reference=15000

logs=$BUILD/logs/calibrate
mkdir -p "$logs" "$STAMP"
# A slow machine may need the limits that are not known yet.
echo 400 >"$STAMP/speed"
boot()
{
	# shellcheck disable=SC2016 # expanded in the guest
	"$TOP/scripts/boot.sh" --name "calibrate/$1" --smp 1 --mem 1G --timeout 120 -- '
		loop() {
			local i
			for ((i = 0; i < 300000; i++)); do :; done
		}
		# The emulator translates the code the first time.
		for ((i = 0; i < 20000; i++)); do :; done
		from=$EPOCHREALTIME
		loop
		to=$EPOCHREALTIME
		echo $(((${to/./} - ${from/./}) / 1000))'
}
boot 1 >"$logs/1.log" 2>&1 &
boot 2 >"$logs/2.log" 2>&1 || :
wait || :
slower=0
for n in 1 2; do
	ms=$(tr -d '\r' <"$logs/$n/output" 2>/dev/null | grep -xE '[0-9]+' || :)
	if [[ ! $ms ]]; then
		rm -f "$STAMP/speed"
		die "a boot that only counts to 300,000 failed; its log is $logs/$n.log"
	fi
	((ms <= slower)) || slower=$ms
done
speed=$((slower * 100 / reference))
((speed >= 100)) || speed=100
# A hang has to be seen within the hour, however busy the machine is.
((speed <= 400)) || speed=400
echo "$speed" >"$STAMP/speed"
say "emulated work takes $slower ms here, $reference ms where the limits are from: they are multiplied by $speed %"
