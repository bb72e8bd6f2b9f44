#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make root': have root.sh make the toolchain root, unless there is one, and show how far it is.
# Interrupted, it leaves nothing that runs.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=scripts/progress.sh
. "$TOP/scripts/progress.sh"

[[ ! -e $(root_dir)/.complete ]] || exit 0
mkdir -p "$BUILD/logs"
steps=1
step "the toolchain root, Debian packages" 240 root "$TOP/scripts/root.sh"
