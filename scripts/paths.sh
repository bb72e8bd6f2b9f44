#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# KEY=VALUE: where the lab keeps what, for use in QEMU lines of your own.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cat <<EOF
ROOT=$(root_dir)
CACHE=$CACHE
SOURCE=$SRC
KERNEL=$BUILD/linux/arch/x86/boot/bzImage
VMLINUX=$BUILD/linux/vmlinux
KERNEL_DEBUG=$BUILD/linux-debug/arch/x86/boot/bzImage
MODULES_C=$BUILD/mod-c
MODULES_RUST=$BUILD/mod-rust
MODULES_C_DEBUG=$BUILD/mod-c-debug
MODULES_RUST_DEBUG=$BUILD/mod-rust-debug
SELFTESTS=$BUILD/selftests/kvm
SERIES=$BUILD/series
LOGS=$BUILD/logs
EOF
