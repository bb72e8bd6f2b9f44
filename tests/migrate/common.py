# SPDX-License-Identifier: GPL-2.0
"""What all of the driver shares: the layout of guest.c, time, and how a scenario fails."""
import fcntl
import os
import re
import sys
import time
from pathlib import Path

MIB = 1 << 20
RAM = int(os.environ.get("RAM_MIB", 64)) * MIB
PAGE = 4096
PARAMETERS = Path("/sys/module/kvm/parameters")
CAPABILITIES = ("multifd", "auto-converge", "postcopy-ram")
PHASES = ("before", "enable", "pre-copy", "cancel", "after", "split ahead", "recovered",
          "over and over")
SPLAT = re.compile(r"WARNING:|BUG:|BUG at|Oops|general protection|INFO: task|"
                   r"rcu:.*(stall|detected)|UBSAN|Kernel panic|unable to handle|"
                   r"soft lockup|Call Trace:|KVM_BUG")

# The layout of guest.c.
CONTROL = 0x200000
SEQUENCES = 0x280000
TIMELINE = 0x300000
NR_WINDOWS = 8192
HISTOGRAMS = 0x380000
NR_PHASES = 8
SUB_BITS = 5
NR_BUCKETS = 40 << SUB_BITS
SAMPLES = 0x390000
NR_SAMPLES = 57344
SAMPLE_SHIFT = 8
MAGIC = 0x6D69677261746521
RUN, QUIESCE, CHECK, EJECT = range(4)
FIELDS = ("magic ram_size period0 period1 batch window command serial phase ext_base "
          "ext_size execute checked errors error0 error1 error2 error3 fault0 fault1 fault2 "
          "fault3 start_tsc pad ticks0 tsc0 pages0 max_late0 ack0 ticks1 tsc1 pages1 "
          "max_late1 ack1").split()
COST = len(FIELDS)
MAX_LATE = COST + 2 * NR_PHASES
NR_SAMPLED = MAX_LATE + NR_PHASES
NR_FIELDS = NR_SAMPLED + 1


class Failed(Exception):
    """An assertion of a scenario does not hold."""


class Skipped(Exception):
    """A scenario cannot run here."""


def check(condition, message):
    if not condition:
        raise Failed(message)


def note(message):
    """Says on standard error how far it is."""
    print(f"[{time.monotonic():9.3f}] {message}", file=sys.stderr, flush=True)


def tsc_khz():
    """The frequency of a guest's TSC. (That of the CPU changes on a real machine.)"""
    create_vm, create_vcpu, get_tsc_khz = 0xAE01, 0xAE41, 0xAEA3
    files = []
    try:
        files.append(os.open("/dev/kvm", os.O_RDWR))
        files.append(fcntl.ioctl(files[0], create_vm, 0))
        files.append(fcntl.ioctl(files[1], create_vcpu, 0))
        return fcntl.ioctl(files[2], get_tsc_khz, 0)
    finally:
        for file in reversed(files):
            os.close(file)


TSC_KHZ = tsc_khz()


def mmu_engine():
    """Which MMU the loaded module has: "rust" or "c"."""
    path = PARAMETERS / "mmu_engine"
    return path.read_text().strip() if path.exists() else "c"


def ticks(us):
    return us * TSC_KHZ // 1000


def to_us(tsc):
    return tsc * 1000 / TSC_KHZ
