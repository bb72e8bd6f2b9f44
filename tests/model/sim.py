# SPDX-License-Identifier: GPL-2.0
"""The simulation's core: time, cache lines and the fair rwlock. Times are in nanoseconds.

A process is a generator. It yields a number to let so much time pass, or a Wait to stop until
somebody calls its wake().
"""
import heapq
import itertools
from collections import deque


class Wait:
    """One process that waits. It may be woken before it waits."""

    def __init__(self, sim):
        self.sim = sim
        self.process = None
        self.woken = None

    def wake(self, delay=0.0):
        if self.process is None:
            self.woken = delay
        else:
            self.sim.resume(self.process, delay)


class Sim:
    def __init__(self):
        self.now = 0.0
        self.queue = []
        self.order = itertools.count()

    def spawn(self, process, delay=0.0):
        self.resume(process, delay)

    def resume(self, process, delay):
        heapq.heappush(self.queue, (self.now + delay, next(self.order), process))

    def run(self, until=None, ended=None):
        """Until there is nothing to do, or it is @until, or @ended() is true."""
        while self.queue and not (ended and ended()):
            at, _, process = self.queue[0]
            if until is not None and at > until:
                self.now = until
                return
            heapq.heappop(self.queue)
            self.now = at
            try:
                what = next(process)
            except StopIteration:
                continue
            if isinstance(what, Wait):
                if what.woken is None:
                    what.process = process
                else:
                    self.resume(process, what.woken)
            else:
                self.resume(process, what)


class Line:
    """A cache line that several CPUs change. One has it at a time, and it takes @transfer to
    get it from another."""

    def __init__(self, sim, transfer, local):
        self.sim = sim
        self.transfer = transfer
        self.local = local
        self.owner = None
        self.free = 0.0

    def change(self, who):
        """Returns how long a read-modify-write by @who takes, from now."""
        cost = self.local if self.owner == who else self.transfer
        self.free = max(self.sim.now, self.free) + cost
        self.owner = who
        return self.free - self.sim.now


class FairLock:
    """mmu_lock, a qrwlock: whoever comes queues behind those that wait already, be it as a
    reader behind a writer that waits for readers."""

    def __init__(self, sim, transfer, local):
        self.sim = sim
        self.line = Line(sim, transfer, local)
        self.readers = 0
        self.writer = False
        self.waiting = deque()
        # How often somebody gave way because somebody waited.
        self.breaks = 0

    @property
    def contended(self):
        """What rwlock_needbreak() asks."""
        return bool(self.waiting)

    def acquire(self, who, write):
        """Returns how long it took, as a process's value."""
        start = self.sim.now
        yield self.line.change(who)
        if not self.waiting and self._free(write):
            self._take(write)
        else:
            wait = Wait(self.sim)
            self.waiting.append((wait, write))
            yield wait
        return self.sim.now - start

    def release(self, who, write):
        yield self.line.change(who)
        if write:
            self.writer = False
        else:
            self.readers -= 1
        self._grant()

    def cond_resched(self, who, write):
        """What cond_resched_rwlock_*() does, if somebody waits."""
        if self.contended:
            self.breaks += 1
            yield from self.release(who, write)
            yield from self.acquire(who, write)

    def _free(self, write):
        return not self.writer and not (write and self.readers)

    def _take(self, write):
        if write:
            self.writer = True
        else:
            self.readers += 1

    def _grant(self):
        # Those at the head of the queue get it one after the other: each takes the line.
        delay = 0.0
        while self.waiting and self._free(self.waiting[0][1]):
            wait, write = self.waiting.popleft()
            self._take(write)
            delay += self.line.transfer
            wait.wake(delay)
