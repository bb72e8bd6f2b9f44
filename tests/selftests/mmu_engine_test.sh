#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# In the guest, of mmu.list: the module parameter mmu_engine only says what was built. If it is to be
# set, kvm is not loaded, and says why. Leaves kvm unloaded.
set -euo pipefail
[[ -e /sys/module/kvm/parameters/mmu_engine ]] || {
	echo "SKIP - kvm has no parameter mmu_engine"
	exit 4
}
if /lab/kvm-load rust kvm.mmu_engine=c; then
	/lab/kvm-unload
	echo "kvm was loaded with mmu_engine=c"
	exit 1
fi
[[ $(dmesg) = *"kvm: mmu_engine only says"* ]] || {
	echo "kvm did not say that mmu_engine cannot be set"
	exit 1
}
