# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Show how far a long step is, for those who wait. Sourced after lib.sh.

number=0 steps=${steps:-0} job=''
# tree_of PID: it, all of its process group, and what these have started: mmdebstrap is a session
# of its own, and root.sh, which waits for it, ends no sooner than it does.
# shellcheck disable=SC2317,SC2329 # called by the trap
tree_of()
{
	cat /proc/[0-9]*/stat 2>/dev/null | awk -v root="$1" '
		# The name, in parentheses, may have blanks.
		{ sub(/\(.*\)/, ""); parent[$1] = $3; group[$1] = $4 }
		END {
			for (more = ours[root] = 1; more; ) {
				more = 0
				for (pid in parent)
					if (!(pid in ours) && (group[pid] == root || parent[pid] in ours))
						more = ours[pid] = 1
			}
			for (pid in ours) print pid
		}'
}

# Nothing outlives us, whatever ends us; what it has begun is removed when this returns. Each is
# told once: what they start then is what removes it.
# shellcheck disable=SC2317,SC2329 # called by the trap
end_job()
{
	[[ $job ]] || return 0
	# shellcheck disable=SC2046 # they are words
	kill $(tree_of "$job") 2>/dev/null || :
	wait "$job" || :
}

minutes()
{
	printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
}

# last_of LOG...: the last line of that which was written to last.
last_of()
{
	local log
	# shellcheck disable=SC2012 # names of our own
	log=$(ls -t "$@" 2>/dev/null | sed -n 1p)
	[[ ! $log ]] || tail -c 2000 "$log" | tr -d '\r' | tail -n 1 | cut -c1-60 | sed 's/^ *//'
}

# root_far: how far root.sh is. mmdebstrap tells each of its few steps, and where the tree is that it
# makes, but not how many packages are in there.
root_far()
{
	local log=$CACHE/root.log tree='' said debs dpkg=/dev/null usual=411
	[[ ! -e $log ]] || tree=$(sed -n 's/^I: using \(.*\) as tempdir$/\1/p' "$log")
	# It has not begun, and the log is an older one; or it has ended.
	if [[ ! -d $tree ]]; then
		last_of "$BUILD/logs/step-root.log"
		return
	fi
	said=$(last_of "$log")
	said=${said#I: }
	case $said in
	downloading*|installing*)
		debs=$(find "$tree/var/cache/apt/archives" -maxdepth 1 -name '*.deb' | wc -l)
		[[ ! -e $tree/var/log/dpkg.log ]] || dpkg=$tree/var/log/dpkg.log
		said+=$(awk -v debs="$debs" -v usual="$usual" '
			$3 == "install" { unpacked++ }
			$3 == "configure" { set_up++ }
			END {
				printf " of about %d packages %d are here, %d unpacked, %d set up",
					usual, debs, unpacked, set_up
			}' "$dpkg") ;;
	esac
	echo "$said"
}

# progress TITLE USUAL LOG HOW-FAR COMMAND...: run it, its output to LOG. Says at once what
# it is and how long it usually takes (USUAL, seconds on two processors), and every 15
# seconds how far it is, which the command HOW-FAR prints.
progress()
{
	local title=$1 usual=$2 log=$3 far=$4 begin=$SECONDS next=15 status=0
	shift 4
	number=$((number + 1))
	say "[$number/$steps] $title (usually $(minutes "$usual"); log: ${log#"$TOP/"})"
	# A process group of its own, to be ended as one.
	set -m
	"$@" >"$log" 2>&1 </dev/null &
	job=$!
	set +m
	trap end_job EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM HUP
	while kill -0 "$job" 2>/dev/null; do
		sleep 1
		((SECONDS - begin >= next)) || continue
		next=$((next + 15))
		say "[$number/$steps] $(minutes $((SECONDS - begin))) of about $(minutes "$usual"): $($far)"
	done
	wait "$job" || status=$?
	job=''
	return "$status"
}

# step TITLE USUAL NAME COMMAND...: a step without which there is nothing to go on with.
# What the command runs may have a log of its own, NAME.log; that of "root" is told of by root_far.
step()
{
	local log=$BUILD/logs/step-$3.log begin=$SECONDS far
	far="last_of $log $BUILD/logs/$3.log"
	[[ $3 != root ]] || far=root_far
	progress "$1" "$2" "$log" "$far" "${@:4}" || {
		grep -m1 -h '^error: ' "$log" >&2 || {
			tail -n 20 "$log" >&2
			die "'$1' failed; the log is $log. Repeat the command when it is mended: what is complete is kept"
		}
		exit 1
	}
	say "[$number/$steps] done in $(minutes $((SECONDS - begin)))"
}
