#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Remove what the lab cached: toolchain roots and downloaded packages.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
[[ -d $CACHE ]] || exit 0
# Nothing is mounted there (in-root mounts privately); --one-file-system makes
# sure that no mount of somebody else is emptied.
rm -rf --one-file-system "$CACHE"
