#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# 'make host': the tests of the pure core, on the host, without any kernel.
#   run.sh [CARGO-TEST-ARGUMENT]...
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

trust=()
# The machine says whom to trust: it may have a proxy of its own.
[[ ! -d /etc/ssl/certs ]] || trust=(-b /etc/ssl/certs)
exec "$TOP/scripts/in-root" "${trust[@]}" env -C "$TOP/tools/testing/kvm-mmu-rs" \
	CARGO_TARGET_DIR="$BUILD/host" cargo test "$@"
