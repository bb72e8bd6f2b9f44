#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# What checkpatch.pl --strict remarks on the patches in build/series, and which of their new
# files MAINTAINERS does not cover. Any remark fails, except two kinds that patches/README.md
# gives a reason for.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../lib.sh"
enter_root "$@"

cd "$SRC"
patches=("$BUILD"/series/*.patch)
[[ -e ${patches[0]} ]] || die "no series in build/series; run 'make series'"
failed=0
for p in "${patches[@]}"; do
	# MAINTAINERS is looked at below.
	ignore=FILE_PATH_CHANGES
	! grep -q '^+++ b/tools/kvm/mmu_lock_stat/mmu_lock_stat$' "$p" || ignore+=,EXECUTE_PERMISSIONS
	perl scripts/checkpatch.pl --strict --quiet --no-summary --show-types --root=. \
		--ignore "$ignore" - <"$p" || {
		echo "checkpatch: see ${p##*/}"
		failed=1
	}
done

mapfile -t new < <(awk '
	from_nothing && /^\+\+\+ b\// { print substr($0, 7) }
	{ from_nothing = $0 == "--- /dev/null" }' "${patches[@]}" | sort -u)
while read -r dir; do
	[[ $(perl scripts/get_maintainer.pl --no-git --no-git-fallback --no-l --no-r -f "$dir" 2>/dev/null) ]] || {
		echo "MAINTAINERS has nobody for $dir"
		failed=1
	}
done < <(printf '%s\n' "${new[@]}" | xargs dirname | sort -u)

((!failed)) || die "checkpatch has remarks on the series"
say "checkpatch --strict accepts ${#patches[@]} patches; MAINTAINERS covers their ${#new[@]} new files"
