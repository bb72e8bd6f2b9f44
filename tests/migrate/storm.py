# SPDX-License-Identifier: GPL-2.0
"""Changes of a guest's memory from outside."""
import ctypes
import os
import struct
from pathlib import Path

from common import MIB, PAGE, RAM


class Storm:
    """Changes of QEMU's own mappings that hit the guest's memory, from outside."""
    COLD, PAGEOUT, COLLAPSE = 20, 21, 25

    def __init__(self, qemu, backend, spare=0):
        """Hits all memory but what begins at 0 and is so large."""
        self.qemu = qemu
        self.backend = backend
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.pidfd = os.pidfd_open(qemu.process.pid)
        self.counts = {}
        self.offset = 0
        self.spare = spare
        self.ksm = Path("/sys/kernel/mm/ksm")
        if backend == "thp":
            (self.ksm / "sleep_millisecs").write_text("1")
            (self.ksm / "pages_to_scan").write_text("1000")
            (self.ksm / "run").write_text("1")

    def count(self, what, n=1):
        self.counts[what] = self.counts.get(what, 0) + n

    def madvise(self, what, advice, offset, size):
        class Iovec(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
        vec = Iovec(self.qemu.hva + offset, size)
        done = self.libc.syscall(440, self.pidfd, ctypes.byref(vec), ctypes.c_size_t(1),
                                 advice, 0)
        if done > 0:
            self.count(what)

    def once(self):
        self.offset = (self.offset + 6 * MIB) % RAM
        if self.offset < self.spare:
            self.offset += self.spare
        if self.backend == "thp":
            self.madvise("madvise(COLD)", self.COLD, self.offset, 2 * MIB)
            self.madvise("madvise(PAGEOUT)", self.PAGEOUT, self.offset, 2 * MIB)
            self.madvise("madvise(COLLAPSE)", self.COLLAPSE, self.offset, 2 * MIB)
        self.idle()
        if self.counts.get("soft offline", 0) < 3 and self.offset >= 4 * MIB:
            self.soft_offline(self.offset)

    def frame(self, offset):
        with open(f"/proc/{self.qemu.process.pid}/pagemap", "rb") as file:
            file.seek((self.qemu.hva + offset) // PAGE * 8)
            return struct.unpack("<Q", file.read(8))[0] & ((1 << 55) - 1)

    def idle(self):
        """Ages 64 pages."""
        frame = self.frame(self.offset)
        if not frame:
            return
        try:
            with open("/sys/kernel/mm/page_idle/bitmap", "r+b", buffering=0) as file:
                file.seek(frame // 64 * 8)
                file.write(b"\xff" * 8)
            self.count("idle pages", 64)
        except OSError:
            pass

    def soft_offline(self, offset):
        """Has the kernel move a page away: unmapped, copied and faulted in anew."""
        frame = self.frame(offset)
        try:
            Path("/sys/devices/system/memory/soft_offline_page").write_text(
                hex(frame * PAGE))
            self.count("soft offline")
        except OSError as error:
            self.count(f"soft offline failed: {error.strerror}")

    def end(self):
        if self.backend == "thp":
            (self.ksm / "run").write_text("2")
        os.close(self.pidfd)
