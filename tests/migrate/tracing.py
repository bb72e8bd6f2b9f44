# SPDX-License-Identifier: GPL-2.0
"""What KVM did when, by function tracing."""
import re
from pathlib import Path

from common import check


class Tracing:
    """When KVM cleared the log, and when it recovered huge pages as logging was switched off,
    in ticks of the host's TSC, by function tracing.

    Clearing ends with a flush, if there was anything to clear; later flushes of the
    thread are of something else. After recovery, the slot's bitmap is freed.
    """
    tracing = Path("/sys/kernel/tracing")
    FLUSH, RECOVER, FREE, IOCTL = (
        "kvm_make_all_cpus_request", "kvm_mmu_recover_huge_pages", "vfree",
        "kvm_set_memory_region")
    # With the MMU in Rust the former only calls the latter, and is not there when it is inlined.
    CLEAR = ("kvm_vm_ioctl_clear_dirty_log", "kvm_rs_clear_log")

    def follow(self, function):
        """Adds a function to those that are traced. Returns whether there is one of that name."""
        try:
            with open(self.tracing / "set_ftrace_filter", "a", encoding="ascii") as file:
                file.write(f"{function}\n")
        except OSError:
            return False
        return True

    def start(self):
        (self.tracing / "set_ftrace_filter").write_text("")
        for function in (self.FLUSH, self.RECOVER, self.FREE, self.IOCTL):
            check(self.follow(function), f"{function}() cannot be traced")
        check(any([self.follow(function) for function in self.CLEAR]),
              f"{' and '.join(self.CLEAR)} cannot be traced")
        for name, text in (("trace_clock", "x86-tsc"), ("trace", ""),
                           ("current_tracer", "function")):
            (self.tracing / name).write_text(text)

    def stop(self):
        """Returns the spans of time of both, [(begin, end)]."""
        text = (self.tracing / "trace").read_text()
        (self.tracing / "current_tracer").write_text("nop")
        (self.tracing / "set_ftrace_filter").write_text("")
        found = {"during_clear": [], "during_recovery": []}
        clearing, recovering = {}, {}
        for thread, tsc, function in re.findall(
                r"^\s*\S.*-(\d+)\s+\[\d+\].*?(\d+): (\w+) <-", text, re.M):
            tsc = int(tsc)
            if function in self.CLEAR:
                clearing[thread] = [tsc, 0]
                found["during_clear"].append(clearing[thread])
            elif function == self.IOCTL:
                clearing.pop(thread, None)
            elif function == self.FLUSH and thread in clearing:
                clearing[thread][1] = tsc
            elif function == self.RECOVER:
                recovering[thread] = tsc
            elif function == self.FREE and thread in recovering:
                found["during_recovery"].append([recovering.pop(thread), tsc])
        found["during_clear"] = [span for span in found["during_clear"] if span[1]]
        return found
