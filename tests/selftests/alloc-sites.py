#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Which of the MMU's allocation sites have failed, of all that there are.

usage: alloc-sites.py MODULES LOG...

MODULES is a directory of scripts/modules.sh, whose objects say what sites there
are: calls of an allocator in the MMU's objects, and in what makes memslots; and for
each cache that is topped up, its array and its objects. LOG is what the kernel says
when mmu_enomem_test -v makes them fail. A site is named after its function; what is
inlined in several places is one site.
"""
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

ALLOCATOR = re.compile(r"^(kmem_cache_alloc|__kvmalloc|__vcalloc|alloc_pages|get_free_pages|"
                       r"get_zeroed_page|__kmalloc)\w*_noprof$")
TOPUP = {"kvm_mmu_topup_memory_cache", "__kvm_mmu_topup_memory_cache"}
INNER = TOPUP | {"mmu_memory_cache_alloc_obj"}
# Objects, and of those that do other things as well, the functions that matter.
OBJECTS = {
    "arch/x86/kvm/mmu/rust/rust_mmu.o": None,
    "arch/x86/kvm/mmu/mmu.o": None,
    "arch/x86/kvm/x86.o": {"memslot_rmap_alloc", "kvm_arch_prepare_memory_region"},
    "virt/kvm/kvm_main.o": {"kvm_set_memory_region", "kvm_set_memslot", *INNER},
}
# Helpers that are inlined wherever they are called; nobody calls these copies.
UNCALLED = {"kvm_rs_alloc_header", "kvm_rs_alloc_headers", "kvm_rs_alloc_table"}
# What is topped up, in the order of the calls, by how many there are in a function.
VCPU = ["mmu_pte_list_desc_cache", "mmu_external_spt_cache", "mmu_shadow_page_cache",
        "mmu_shadowed_info_cache", "mmu_page_header_cache"]
CACHES = {5: VCPU, 4: [c for c in VCPU if "shadowed_info" not in c],
          3: ["split_desc_cache", "split_page_header_cache", "split_shadow_page_cache"]}
# Sites that the operations of the test do not come to, and those that do not fail as a
# whole: where more than a page is wanted, kvmalloc() tries kmalloc(), whose failure the
# kernel does not tell, and then vmalloc(). The test's memory cgroup lets both fail.
ELSEWHERE = {
    "cache::TdpSplitCache::fill: alloc_pages ": "a page of headers: the kernel does not tell",
    "split_desc_cache: array": "more than a page: falls back to vmalloc()",
    "kvm_mmu_load: __kvmalloc": "more than a page: falls back to vmalloc()",
    "kvm_set_memslot: __kmalloc": "deleting or moving a memslot",
    "mmu_external_spt_cache": "TDX only",
    "kvm_mmu_load: get_zeroed_page": "shadow roots of L2 guests without 64-bit paging",
    "__kvm_mmu_create": "creating a vCPU where there is no NPT or EPT",
    "kvm_mmu_init_vm": "creating a VM where there is no TDP MMU",
}


def calls(path):
    """(function, return offset, callee) of each call in an object."""
    out = subprocess.run(["llvm-objdump-19", "-dr", "--no-show-raw-insn", path], check=True,
                         capture_output=True, text=True).stdout
    function, start = None, 0
    for line in out.splitlines():
        if match := re.match(r"^([0-9a-f]+) <(.*)>:$", line):
            function, start = match[2], int(match[1], 16)
        elif match := re.match(r"\s+([0-9a-f]+):\s+R_X86_64_PLT32\s+(\S+?)-0x4$", line):
            yield function, int(match[1], 16) + 4 - start, match[2]


def demangle(name):
    out = subprocess.run(["llvm-cxxfilt-19", name], check=True, capture_output=True, text=True)
    name = out.stdout.strip()
    return re.sub(r"\[[0-9a-f]+\]", "", re.sub(r"<(.*)>::", r"\1::", name)).removeprefix(
        "kvm_rust_mmu::")


class Sites:
    """All sites, by name, and by where a call trace shows them."""

    def __init__(self, modules):
        self.by_address, self.names, topups = {}, [], defaultdict(list)
        self.array = set()
        for name, functions in OBJECTS.items():
            plain = Counter()
            for function, offset, callee in calls(modules / name):
                if function in UNCALLED or functions is not None and function not in functions:
                    continue
                if callee in TOPUP and function not in TOPUP:
                    topups[function].append(offset)
                elif ALLOCATOR.match(callee):
                    if function in INNER:
                        if "kvmalloc" in callee:
                            self.array.add((function, offset))
                        continue
                    plain[function, callee] += 1
                    number = plain[function, callee]
                    site = f"{demangle(function)}: {callee.removesuffix('_noprof')}"
                    self.add((function, offset), site if number == 1 else f"{site} ({number})")
        for function, offsets in topups.items():
            for offset, cache in zip(sorted(offsets), CACHES[len(offsets)]):
                self.add((function, offset), cache, ("array", "objects"))

    def add(self, address, name, parts=None):
        self.by_address[address] = name
        for full in [f"{name}: {part}" for part in parts] if parts else [name]:
            if full not in self.names:
                self.names.append(full)

    def of_trace(self, frames):
        """The site in a call trace of (function, offset), innermost first."""
        part = ": objects"
        for frame in frames:
            if frame[0] in INNER:
                if frame in self.array:
                    part = ": array"
                continue
            if frame in self.by_address:
                name = self.by_address[frame]
                return name + part if name in sum(CACHES.values(), []) else name
        return None


def traces(path):
    """The frames of each failure, without those that are only remembered (?)."""
    frames = None
    for line in path.read_text(errors="replace").splitlines():
        if "FAULT_INJECTION: forcing a failure" in line:
            if frames:
                yield frames
            frames = []
        elif frames is not None and (match := re.search(
                r"\]\s+([\w.$]+)\+0x([0-9a-f]+)/0x[0-9a-f]+", line)):
            frames.append((match[1], int(match[2], 16)))
    if frames:
        yield frames


def main():
    if len(sys.argv) < 3:
        return __doc__
    sites = Sites(Path(sys.argv[1]))
    failed, others = Counter(), Counter()
    for path in sys.argv[2:]:
        for frames in traces(Path(path)):
            name = sites.of_trace(frames)
            if name:
                failed[name] += 1
            else:
                others[next((f for f, _ in frames if "kvm" in f), frames[-1][0])] += 1
    print("times  allocation site")
    for name in sites.names:
        why = next((w for key, w in ELSEWHERE.items() if f"{name} ".startswith(key)), "")
        print(f"{failed[name]:5}  {name}" + (f"  ({why})" if why and not failed[name] else ""))
    print(f"{sum(others.values()):5}  allocations elsewhere: {', '.join(sorted(others))}")
    hit = sum(1 for name in sites.names if failed[name])
    away = sum(1 for name in sites.names if not failed[name]
               and any(f"{name} ".startswith(key) for key in ELSEWHERE))
    print(f"{len(sites.names)} sites, {hit} have failed at least once, {away} cannot, as said, "
          f"{len(sites.names) - hit - away} have not")
    return 0 if hit + away == len(sites.names) else 1


if __name__ == "__main__":
    sys.exit(main())
