// SPDX-License-Identifier: GPL-2.0

//! Creating and invalidating roots.

use crate::{
    page::OwnedSp,
    pure::Role,
    root::{
        find_locked,
        stable_roots,
        Root,
        RootTypes,
        Roots,
        Selection, //
    },
    sync::{
        Exclusive,
        PagesLock,
        SlotsLock, //
    },
    sys::Vcpu, //
};

/// A root for the vCPU: an existing one, or a new one.
///
/// Looks for it twice. First under `mmu_lock` held for read, because all vCPUs of a VM except the
/// first find the root there, and then again under the lock that protects additions.
pub(crate) fn get_or_create<'vm>(vcpu: Vcpu<'vm>, role: Role) -> Root<'vm> {
    let vm = vcpu.vm();

    vcpu.with_shared(|lock| {
        let mut roots = Roots::new(vm, Selection::valid(role.as_id()));

        while let Some(root) = roots.next(lock) {
            if root.role() != role {
                continue;
            }
            if let Some(root) = roots.into_current() {
                return root;
            }
            break;
        }

        let pages = PagesLock::new(vm);
        if let Some(root) = find_locked(&pages, role) {
            return root;
        }

        let mut page = OwnedSp::from_vcpu(vcpu);
        page.init_root(role);
        Root::publish(page, &pages)
    })
}

/// Invalidates the roots of some kinds: no vCPU will load one again, and each is scheduled to be
/// zapped, later, under `mmu_lock` held for read.
pub(crate) fn invalidate(lock: &Exclusive<'_>, slots: &SlotsLock<'_>, types: RootTypes) {
    // Invalidating invalid roots is a bug.
    warn_on_once!(types.has_invalid());

    let selection = Selection {
        types: types.only_valid(),
        as_id: None,
    };
    for root in stable_roots(lock, selection) {
        Root::invalidate(lock, slots, root);
    }
}
