#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# The C that the simulation models rather than runs (tools/testing/kvm-mmu-rs/sim):
# fails if one of these functions has changed since somebody last looked at it, or if the simulation
# names one of KVM's functions that is not in the list.
#   models.sh [--update]    --update: they were looked at
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

list=$TOP/tools/testing/kvm-mmu-rs/sim/models.list
[[ -d $SRC ]] || die "no kernel source in $SRC; run 'make source'"

# definition FILE FUNCTION: its lines, and its text.
definition()
{
	[[ -e $SRC/$1 ]] || return 0
	awk -v name="$2" '
		!inside && $0 !~ /^[ \t#*]/ && $0 ~ "(^|[ *])" name "\\(" { inside = 1; first = NR; text = "" }
		inside { text = text $0 "\n" }
		inside == 1 && /^{/ { inside = 2 }
		inside == 1 && /;$/ { inside = 0 }
		inside == 2 && /^}/ { printf "%d-%d\n%s", first, NR, text; exit }
	' "$SRC/$1"
}

status=0 new=()
while read -r file function lines sum; do
	if [[ ! $file || $file = \#* ]]; then
		new+=("${file:+$file $function $lines $sum}")
		continue
	fi
	found=$(definition "$file" "$function")
	if [[ ! $found ]]; then
		echo "$file has no $function(), which the simulation models"
		status=1
		continue
	fi
	now=$(sed 1d <<<"$found" | sha256sum | cut -c1-16)
	new+=("$file $function ${found%%$'\n'*} $now")
	[[ $now = "$sum" || ${1:-} = --update ]] || {
		echo "$file: $function() (lines ${found%%$'\n'*}, were $lines) has changed; look whether" \
			"the simulation still models it, then run tests/sim/models.sh --update"
		status=1
	}
done <"$list"

# What the simulation names as `function()`, and KVM defines.
kvm=("$SRC"/{arch/x86/kvm,virt/kvm,include/linux/kvm_host.h})
# shellcheck disable=SC2016 # backquotes of Markdown
while read -r function; do
	! grep -q "^[^#]* $function " "$list" || continue
	[[ $function != kvm_* ]] || grep -rqw "$function" "${kvm[@]}" || {
		echo "the simulation names $function(), which KVM does not have"
		status=1
	}
	while read -r file; do
		[[ $(definition "${file#"$SRC/"}" "$function") ]] || continue
		echo "${file#"$SRC/"}: the simulation names $function(), and models.list does not"
		status=1
	done < <(grep -rlE --include='*.[ch]' "(^|[ *])$function\\(" "${kvm[@]}")
done < <(grep -rohE '`[a-z_0-9]+\(\)`' "${list%/*}"/{kvm,src} --include='*.rs' | tr -d '`()' | sort -u)
if [[ ${1:-} = --update ]] && ((!status)); then
	printf '%s\n' "${new[@]}" | sed 's/ *$//' >"$list"
fi
exit "$status"
