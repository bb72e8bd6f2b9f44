#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Test the model: the lock, the line, and what is known of the phases. Prints TAP."""
import sys

import inputs
from model import FACTOR, FOUNDING, GIB, WAYS, Machine, Migration, Way, first_pass
from sim import FairLock, Line, Sim


def hold(sim, lock, log, name, write, at, time):
    """A process that takes the lock at a time, and keeps it for a while."""
    def process():
        yield at
        yield from lock.acquire(name, write)
        log.append((name, "has", sim.now))
        yield time
        yield from lock.release(name, write)
        log.append((name, "ends", sim.now))
    sim.spawn(process())


def run_lock(*parties):
    """(name, write, at, time) on a lock whose line costs nothing: the order of events."""
    sim, log = Sim(), []
    lock = FairLock(sim, 0.0, 0.0)
    for name, write, at, time in parties:
        hold(sim, lock, log, name, write, at, time)
    sim.run()
    return log, lock


def lock_tests():
    log, _ = run_lock(("a", False, 0, 10), ("b", False, 1, 10))
    yield "readers share the lock", ("b", "has", 1) in log
    log, _ = run_lock(("a", True, 0, 10), ("b", True, 1, 10))
    yield "a writer waits for a writer", ("b", "has", 10) in log
    log, _ = run_lock(("a", False, 0, 10), ("w", True, 1, 5), ("b", False, 2, 5))
    yield "a reader queues behind a writer that waits for a reader", \
        ("w", "has", 10) in log and ("b", "has", 15) in log
    log, _ = run_lock(("w", True, 0, 10), ("a", False, 1, 5), ("b", False, 2, 5), ("x", True, 3, 5))
    yield "readers that wait together get it together, and before a later writer", \
        ("a", "has", 10) in log and ("b", "has", 10) in log and ("x", "has", 15) in log
    log, lock = run_lock(*((f"p{n}", n % 3 == 0, n, 7) for n in range(60)))
    yield "everybody gets it, and it is free at the end", \
        len(log) == 120 and not lock.readers and not lock.writer and not lock.waiting
    kinds = {f"p{n}": n % 3 == 0 for n in range(60)}
    inside, excluded = set(), True
    for name, what, _ in sorted(log, key=lambda e: (e[2], e[1] == "has")):
        inside = inside | {name} if what == "has" else inside - {name}
        excluded &= len(inside) == 1 or not any(kinds[n] for n in inside)
    yield "a writer is alone", excluded

    sim, seen = Sim(), []
    lock = FairLock(sim, 0.0, 0.0)

    def long_reader():
        yield from lock.acquire("long", False)
        for _ in range(10):
            yield 10
            yield from lock.cond_resched("long", False)
        yield from lock.release("long", False)
        seen.append(("long", sim.now))
    sim.spawn(long_reader())
    log = []
    hold(sim, lock, log, "w", True, 15, 5)
    sim.run()
    yield "a reader that checks yields to a writer, and goes on after it", \
        ("w", "has", 20) in log and seen == [("long", 105)] and lock.breaks == 1


def line_tests():
    sim = Sim()
    line = Line(sim, 50, 5)
    yield "a line comes from another CPU once, and is one's own then", \
        [line.change("a"), line.change("a")] == [50, 55]
    yield "another that wants it meanwhile waits", line.change("b") == 105
    sim.spawn(iter([1000.0]))
    sim.run()
    yield "nobody waits for a line that nobody uses", line.change("b") == 5


def model_tests(v):
    for item in FOUNDING:
        said = item.model(v)
        yield f"{item.what}: {said:.3g} s, measured {item.measured:g}", \
            1 / FACTOR <= said / item.measured <= FACTOR
    fitted = [item.fitted for item in FOUNDING if item.fitted]
    fits = [name for name, item in inputs.load().items() if item.kind == inputs.FIT]
    yield "each fit is to one figure, and named there", sorted(fitted) == sorted(fits)
    yield "half of the figures have no fit", len(fitted) * 2 <= len(FOUNDING)

    one, many = (first_pass(v, vcpus, False) for vcpus in (1, 96))
    yield "one vCPU does not wait for the lock's line, many do", one * 2 < many

    def phases(way, vcpus=8, gib=16, **changed):
        return Migration(inputs.values(**changed), vcpus, gib, way, 0.2).phases()
    c, rust, ahead = phases(WAYS[0]), phases(WAYS[1]), phases(WAYS[3])
    longest = GIB * v.c_clear
    yield "C's CLEAR makes a fault wait for a gigabyte at most, and for most of one", \
        0.5 * longest < max(c["CLEAR"].fault_waits) < 1.2 * longest
    yield "Rust's does not", max(rust["CLEAR"].fault_waits) < longest / 20
    yield "enabling takes less if all is split", \
        ahead["enable"].seconds < rust["enable"].seconds < c["enable"].seconds
    yield "each phase takes what its tables do, at least", all(
        phase.seconds >= 16 * GIB * cost / 1e9 for phase, cost in (
            (c["enable"], v.c_enable), (c["CLEAR"], v.c_clear), (c["disable"], v.c_disable),
            (rust["enable"], v.rust_enable), (rust["disable"], v.rust_disable)))
    by_one, by_eight = (phases(Way("", "rust", n))["split ahead"].seconds for n in (1, 8))
    yield "eight threads are faster than one, and not more than eight times", \
        by_one / 8 <= by_eight < by_one / 3
    twice = phases(WAYS[0], c_enable=2)["enable"].seconds - v.slot_change / 1e9
    yield "what costs twice takes nearly twice", \
        1.8 < twice / (c["enable"].seconds - v.slot_change / 1e9) < 2.1
    again = phases(WAYS[3])
    yield "the same again gives the same", \
        {name: phase.seconds for name, phase in again.items()} == \
        {name: phase.seconds for name, phase in ahead.items()}
    small, large = (Migration(v, 8, 16, WAYS[1], effort).phases()["disable"].seconds
                    for effort in (0.1, 1.0))
    yield "the size of the piece does not matter much", 0.9 < small / large < 1.1

    machine = Machine(v, 4)
    machine.worker(machine.walk("t", 1000, 1000.0, write=True, looks=False))
    phase = machine.phase(1)
    yield "a notifier waits for a walk that does not look", max(phase.notifier_waits) > 500e3


def input_tests():
    for name, page in (("a page without a row", "no such row"), ("a party that is not there", None)):
        try:
            if page:
                inputs.row("bench-native.md", page)
            else:
                inputs.contention("nobody", 0)
        except inputs.Missing:
            yield f"{name} is an error", True
        else:
            yield f"{name} is an error", False
    table = inputs.load()
    yield "each input has a kind and a source", all(
        item.source and item.kind in (inputs.MEASURED, inputs.FIT, inputs.ASSUMED)
        for item in table.values())
    yield "an input can be changed", \
        inputs.values(table, alloc=2).alloc == 2 * inputs.values(table).alloc


def main():
    results = [*lock_tests(), *line_tests(), *input_tests(), *model_tests(inputs.values())]
    print(f"1..{len(results)}")
    for number, (name, good) in enumerate(results, 1):
        print(f"{'ok' if good else 'not ok'} {number} - model: {name}")
    sys.exit(not all(good for _, good in results))


main()
