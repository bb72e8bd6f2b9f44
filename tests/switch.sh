# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Many bugs in one build, each behind a switch (see switch.py). To be sourced.

# These are nightly's, for mutant.rs only: it must know whether the compiler evaluates it.
switch_env=(RUSTC_BOOTSTRAP=1
	    RUSTFLAGS="--cap-lints warn -Zcrate-attr=feature(core_intrinsics,const_eval_select)")

# switch_in FROM CRATE ROOT WORK COMMAND...: makes CRATE a copy of the sources in FROM, with all bugs of
# WORK/bugs, lines of NUMBER=DIFF. ROOT is the crate's first file; COMMAND compiles the crate, and says
# what is wrong as JSON. Those that are in no function's body are in WORK/alone afterwards, one number a
# line, and those that do not compile in WORK/unviable.
switch_in()
{
	local from=$1 crate=$2 root=$3 work=$4 bugs guilty
	shift 4
	: >"$work/unviable"
	while :; do
		rsync -a --delete --exclude /target "$from/" "$crate/"
		cp "$TOP/tests/mutant.rs" "$crate/mutant.rs"
		echo 'mod mutant;' >>"$crate/$root"
		mapfile -t bugs < <(grep -vE "^($(paste -sd'|' "$work/unviable"))=" "$work/bugs")
		python3 -B "$TOP/tests/switch.py" "$crate" "$work/map" "${bugs[@]}" >"$work/alone" ||
			die "the bugs cannot be put into one build"
		env "${switch_env[@]}" "$@" >"$work/messages" 2>"$work/log" || :
		guilty=$(python3 -B "$TOP/tests/switch.py" "$crate" "$work/map" <"$work/messages") ||
			die "$crate does not compile"
		[[ $guilty ]] || break
		echo "$guilty" >>"$work/unviable"
	done
}

# limited SECONDS COMMAND...: at most so many seconds of a CPU. The status is 152 if it takes more. Nobody
# but this script waits for it, so it ends with this script.
limited()
{
	local seconds=$1
	shift
	(
		ulimit -c 0
		# A signal of its own, and then the one that cannot be ignored.
		ulimit -S -t "$seconds"
		ulimit -H -t "$((seconds + 5))"
		exec setpriv --pdeathsig KILL "$@"
	)
}
