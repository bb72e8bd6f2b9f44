# SPDX-License-Identifier: GPL-2.0
"""What happened to a VM between two samples, as the lines of a table."""
from sources import BUCKETS, CAUSES, HOLDERS, duration, get, grown, longest, total, vcpus


def bars(hist):
    """A histogram as lines, from its first to its last bucket that is not empty."""
    used = [n for n, count in enumerate(hist) if count]
    if not used:
        return ["  (never)"]
    most = max(hist)
    return [f"  < {duration(2 ** n):>8} {hist[n]:>10} {'#' * -(-40 * hist[n] // most)}"
            for n in range(used[0], used[-1] + 1)]


def at_most(after, before, whose, name):
    """The longest time between two samples, for people."""
    ns, exact = longest(after, before, whose, name)
    return ("" if exact else "< ") + duration(ns)


def grown_lines(after, before, seconds):
    """Who has waited, who has had the lock, and what faults there were, between two samples."""
    def share(ns):
        return f"{ns / 1e7 / seconds:6.2f}%"

    whose = vcpus(after)
    yield "vCPU      waits     longest  retries  because of"
    for who in whose:
        reasons = [(grown(after, before, who, f"wait_for_{h}"), h) for h in HOLDERS + ["other"]]
        why = ", ".join(f"{h} {duration(ns)}" for ns, h in sorted(reasons, reverse=True) if ns)
        yield (f"{who:<8} {share(grown(after, before, who, 'lock_wait'))} "
               f"{at_most(after, before, [who], 'lock_wait'):>11} "
               f"{grown(after, before, who, 'invalidate_retries', 'count'):>8}  {why}".rstrip())
    yield ""
    yield "holder       holds  mmu_lock     longest"
    for holder in HOLDERS:
        name = f"hold_{holder}"
        count = grown(after, before, "vm", name, "count")
        if count:
            yield (f"{holder:<12} {count:>5}   {share(grown(after, before, 'vm', name))} "
                   f"{at_most(after, before, ['vm'], name):>11}")
    waits = grown(after, before, "vm", "write_wait", "count")
    if waits:
        yield (f"(writers wait {waits:>4}   {share(grown(after, before, 'vm', 'write_wait'))} "
               f"{at_most(after, before, ['vm'], 'write_wait'):>11})")
    yield ""
    yield "fault        count  of vCPUs    average     longest"
    for cause in CAUSES:
        name = f"fault_{cause}"
        count, ns = (total(after, before, name, field) for field in ("count", "ns"))
        if count:
            yield (f"{cause:<12} {count:>5}   {share(ns / len(whose))} {duration(ns / count):>10} "
                   f"{at_most(after, before, whose, name):>11}")


def table(after, before, seconds):
    """All lines: the former, and how long vCPUs have waited so far."""
    yield from grown_lines(after, before, seconds)
    yield ""
    yield "vCPUs have waited for mmu_lock, since their VM began:"
    hists = [get(after, who, "lock_wait", "hist") or [0] * BUCKETS for who in vcpus(after)]
    yield from bars([sum(counts) for counts in zip(*hists)] if hists else [])
