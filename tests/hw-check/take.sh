# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh
# take DIR FILE [PARAMETERS]: copy a module to DIR for kvm-load. DIR/list has a line "NAME
# FILE [PARAMETER=VALUE]..." for each, in the order in which they are loaded. Fails if there
# is no room.
take()
(
	dir=$1 from=$2
	shift 2
	file=${from##*/}
	mkdir -p "$dir" && cp "$from" "$dir/" &&
		echo "$(echo "${file%%.ko*}" | tr - _) $file $*" >>"$dir/list"
)
