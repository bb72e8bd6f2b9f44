#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Make the toolchain root: a Debian tree that is build environment and guest
# file system at once. Nothing is asked, nothing stays mounted, and it appears
# under its name only when it is complete.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=scripts/debian.sh
. "$(dirname "$0")/debian.sh"

root=$(root_dir)
[[ ! -e $root/.complete ]] || exit 0

"$TOP/scripts/preflight.sh"

work=$CACHE/work.$$
log=$CACHE/root.log
mkdir -p "$work"
# shellcheck disable=SC2317,SC2329 # called by the trap
cleanup()
{
	trap '' INT TERM
	rm -rf --one-file-system "$work" 2>/dev/null || :
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

packages=$(sed 's/#.*//' "$TOP/configs/root.packages" | xargs | tr ' ' ,)

say "making the toolchain root (log: $log)"
# shellcheck disable=SC2016 # "$1" in a hook is mmdebstrap's
debian_tree "the toolchain root" "$work/root" "$log" "$packages" \
	--setup-hook="upload '$TOP/configs/root.preferences' /etc/apt/preferences.d/lab" \
	--customize-hook='chroot "$1" sh -c "apt-cache show linux-source-'"$KVER"' >/dev/null 2>&1 && apt-get -y install linux-source-'"$KVER"' || echo no linux-source-'"$KVER"'"' \
	--customize-hook="upload '$TOP/scripts/guest/lab-init' /sbin/lab-init" \
	--customize-hook='chmod 755 "$1/sbin/lab-init"; mkdir -p "$1/lab" "$1/build" "$1/results"' \
	--customize-hook='chroot "$1" dpkg-query -W >"$1/etc/lab-packages"'
# The source is optional: source.sh knows other ways to one, and names them.
touch "$work/root/.complete"
rm -rf --one-file-system "$root"
mv "$work/root" "$root"
say "toolchain root: $root ($(wc -l <"$root/etc/lab-packages") packages)"
