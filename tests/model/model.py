# SPDX-License-Identifier: GPL-2.0
"""Who works on a VM's page tables, and what they wait for.

A piece of each phase is simulated, long enough for its waits to repeat, and its time is
multiplied. The longest wait is that of the piece.
"""
import random
from dataclasses import dataclass, field

from sim import FairLock, Line, Sim

# 2 MiB of the guest: what one page table of the last level maps.
GIB = 512
PAGES = 512


# So much of each phase is simulated, unless that is more than all of it, or too many steps.
PIECE = 30e6
STEPS = 60_000


@dataclass
class Phase:
    """What a phase takes, and how long others wait for mmu_lock meanwhile."""
    seconds: float
    # How long was simulated, and the waits in that, in nanoseconds.
    piece: float = 0.0
    fault_waits: list = field(default_factory=list)
    notifier_waits: list = field(default_factory=list)


def percentile(values, share):
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else 0.0


class Machine:
    """A VM with @vcpus, of which each takes a fault now and then, and one MMU notifier."""

    def __init__(self, v, vcpus, seed=1):
        self.v = v
        self.vcpus = vcpus
        self.sim = Sim()
        self.lock = FairLock(self.sim, v.transfer, v.local)
        self.random = random.Random(seed)
        self.fault_waits = []
        self.notifier_waits = []
        self.over = False
        self.workers = 0
        for n in range(vcpus):
            self.sim.spawn(self.vcpu(n))
        self.sim.spawn(self.notifier())

    def flush(self, vcpus=None):
        """A flush of the TLBs of vCPUs that run: each is asked, and the slowest answers."""
        asked = self.vcpus if vcpus is None else vcpus
        return asked * 2 * self.v.transfer + self.v.ipi

    def vcpu(self, n):
        me = f"vcpu{n}"
        while True:
            yield self.random.expovariate(1 / self.v.fault_period)
            yield self.v.exit
            if self.over:
                return
            self.fault_waits.append((yield from self.lock.acquire(me, False)))
            yield self.v.fault
            yield from self.lock.release(me, False)

    def notifier(self):
        while True:
            yield self.random.uniform(0.5, 1.5) * self.v.notifier_period
            if self.over:
                return
            self.notifier_waits.append((yield from self.lock.acquire("notifier", True)))
            yield self.v.unmap + self.flush()
            yield from self.lock.release("notifier", True)

    def worker(self, process):
        """A thread of the migration's; the phase lasts until all of them have ended."""
        self.workers += 1

        def run():
            yield from process
            self.workers -= 1
        self.sim.spawn(run())

    def phase(self, scale):
        start = self.sim.now
        self.sim.run(ended=lambda: not self.workers)
        piece = self.sim.now - start
        # Those that still wait are counted.
        self.over = True
        self.sim.run()
        return Phase(piece * scale / 1e9, piece, self.fault_waits, self.notifier_waits)

    # --- what the threads do, each for so many page tables

    def walk(self, me, tables, cost, *, write=False, looks=True, per_lock=None, ioctl=None,
             flushes=True):
        """Works on one table after the other. The lock is dropped to allocate @per_lock of them,
        and after an ioctl for @ioctl of them; and if @looks, whenever somebody waits."""
        v, lock = self.v, self.lock
        yield from lock.acquire(me, write)
        for n in range(tables):
            if n and ioctl and n % ioctl == 0:
                yield from lock.release(me, write)
                yield self.flush()
                yield from lock.acquire(me, write)
            if per_lock and n % per_lock == 0:
                yield from lock.release(me, write)
                yield v.alloc * min(per_lock, tables - n)
                yield from lock.acquire(me, write)
            elif looks:
                yield from lock.cond_resched(me, write)
            yield cost
        yield from lock.release(me, write)
        if flushes:
            yield self.flush()

    def ahead(self, me, tables, cost, unit, per_lock):
        """KVM_SPLIT_HUGE_PAGES, in calls for @unit tables: says first, as a writer, that they are to
        stay small, or need not. A page that is split for the same rights needs no flush, and one
        that is recovered does."""
        for n in range(0, tables, unit):
            count = min(unit, tables - n)
            yield from self.lock.acquire(me, True)
            yield self.v.keep * count / 32
            yield from self.lock.release(me, True)
            yield from self.walk(me, count, cost, per_lock=per_lock, flushes=not per_lock)


@dataclass(frozen=True)
class Way:
    """How a VM is migrated."""
    name: str
    mmu: str
    threads: int = 0
    # Of KVM_SPLIT_HUGE_PAGES' budget, in tables.
    unit: int = 32


WAYS = (Way("C", "c"), Way("Rust", "rust"), *(Way(f"Rust, split ahead by {n}", "rust", n)
                                              for n in (1, 8, 64)))


class Migration:
    """A VM of @vcpus and @gib that is migrated in one of the WAYS. @effort says how much of each
    phase is simulated: at 1, PIECE."""

    def __init__(self, v, vcpus, gib, way, effort=1.0):
        self.v = v
        self.vcpus = vcpus
        self.tables = gib * GIB
        self.way = way
        self.effort = effort

    def run(self, threads, cost, process):
        """process(machine, name, tables, cost) in each thread. At @cost for a table."""
        want = min(PIECE / cost, STEPS / threads) * self.effort
        # Whole gigabytes, so that the piece has as many ends of ioctls as the whole.
        each = min(max(int(want) // GIB, 1) * GIB, max(self.tables // threads, 1))
        machine = Machine(self.v, self.vcpus)
        for n in range(threads):
            machine.worker(process(machine, f"thread{n}", each, cost))
        return machine.phase(self.tables / (each * threads))

    def before(self):
        """Nobody works on the log: what the notifier alone makes others wait."""
        machine = Machine(self.v, self.vcpus)

        def nothing():
            yield PIECE * self.effort
        machine.worker(nothing())
        return machine.phase(1)

    def changes_slots(self, phase):
        phase.seconds += self.v.slot_change / 1e9
        return phase

    def phases(self):
        """Of a migration that is cancelled after a pass in which all was written: {name: Phase}."""
        v, way = self.v, self.way
        if way.mmu == "c":
            return self.of_c()
        phases = {}
        per_lock = int(v.rust_tables_per_lock)
        enable, disable = v.rust_enable, v.rust_disable
        if way.threads:
            enable, disable = v.rust_enable_small, v.rust_disable_small
            phases["split ahead"] = self.run(
                way.threads, v.rust_ahead,
                lambda m, me, n, cost: m.ahead(me, n, cost, way.unit, per_lock))
            per_lock = None
        phases["enable"] = self.changes_slots(self.run(
            1, enable, lambda m, me, n, cost: m.walk(me, n, cost, per_lock=per_lock)))
        phases["CLEAR"] = self.run(
            1, v.rust_clear, lambda m, me, n, cost: m.walk(me, n, cost, ioctl=GIB))
        phases["disable"] = self.changes_slots(self.run(
            1, disable, lambda m, me, n, cost: m.walk(me, n, cost)))
        if way.threads:
            phases["recover"] = self.run(
                way.threads, v.rust_disable,
                lambda m, me, n, cost: m.ahead(me, n, cost, way.unit, None))
        return phases

    def of_c(self):
        """C clears for write, and does not check whether anybody waits; QEMU has it clear a gigabyte at a time."""
        v = self.v
        per_lock = int(v.c_tables_per_lock)
        return {
            "enable": self.changes_slots(self.run(
                1, v.c_enable, lambda m, me, n, cost: m.walk(me, n, cost, per_lock=per_lock))),
            "CLEAR": self.run(1, v.c_clear, lambda m, me, n, cost: m.walk(
                me, n, cost, write=True, looks=False, ioctl=GIB)),
            "disable": self.changes_slots(self.run(
                1, v.c_disable, lambda m, me, n, cost: m.walk(me, n, cost))),
        }


# --- what was measured upstream

def first_pass(v, vcpus, split, pages=400):
    """Seconds in which each vCPU writes a GiB, a page at a time; unless that is @split, each write
    is a fault that maps a page, with mmu_lock held for read. The lock's line goes from CPU to CPU."""
    if split:
        return GIB * PAGES * v.write / 1e9
    sim = Sim()
    line = Line(sim, v.transfer, v.local)
    left = [vcpus]

    def vcpu(me):
        # They do not begin at once.
        yield me * v.exit / vcpus
        for _ in range(pages):
            yield v.write + v.exit
            yield line.change(me)
            yield v.fault
            yield line.change(me)
        left[0] -= 1
    for me in range(vcpus):
        sim.spawn(vcpu(me))
    sim.run(ended=lambda: not left[0])
    return sim.now * GIB * PAGES / pages / 1e9


def enable_alone(v, gib, split):
    """Seconds to enable the log while no vCPU runs, as dirty_log_perf_test does it on C."""
    seconds = v.slot_change / 1e9
    if split:
        machine = Machine(v, 0)
        machine.over = True
        machine.worker(machine.walk("thread", GIB, v.c_enable,
                                    per_lock=int(v.c_tables_per_lock)))
        seconds += machine.phase(gib).seconds
    return seconds


def disable_alone(v, vcpus, gib, zap):
    """The same for disabling. In 2021 each 4 KiB page was zapped, and for each all vCPUs were looked
    at, whether they have to be flushed: two locked operations, although none runs."""
    look = vcpus * 2 * v.local
    seconds = v.slot_change / 1e9
    if zap:
        return seconds + gib * GIB * (PAGES * look + v.c_disable) / 1e9
    return seconds + gib * GIB * (look + v.c_disable) / 1e9


@dataclass(frozen=True)
class Founding:
    what: str
    measured: float
    # The input that is fitted to it, or "".
    fitted: str
    model: object


FOUNDING = (
    Founding("first pass, pages split by faults", 2.94, "transfer", lambda v: first_pass(v, 96, False)),
    Founding("first pass, split eagerly", 0.14, "write", lambda v: first_pass(v, 96, True)),
    Founding("enable, without splitting", 0.001, "slot_change", lambda v: enable_alone(v, 96, False)),
    Founding("enable, split eagerly", 1.55, "", lambda v: enable_alone(v, 96, True)),
    Founding("disable, each page zapped", 45, "", lambda v: disable_alone(v, 96, 96, True)),
    Founding("disable, recovered in place", 1, "", lambda v: disable_alone(v, 96, 96, False)),
)
# How far the model may be from those.
FACTOR = 2.0

# vCPUs and GiB: the 2020 RFC's, dirty_log_perf_test's, and one of the largest that are sold.
MACHINES = ((60, 512), (96, 96), (416, 12 * 1024))
