# SPDX-License-Identifier: GPL-2.0
"""What KVM did when, by function tracing."""
import re
from pathlib import Path

from common import check, to_us


class Tracing:
    """When KVM cleared the log, when it recovered huge pages as logging was switched off, and
    when it freed their page tables, in ticks of the host's TSC, by function tracing.

    Clearing ends with a flush, if there was anything to clear; later flushes of the
    thread are of something else. After recovery, the slot's bitmap is freed.

    How long an RCU callback takes that frees tables is an estimate, too high rather than too low:
    where the same CPU begins the next one within half a millisecond, it is the time between the
    two, with all that interrupts them. The last one of a row is not measured.
    """
    tracing = Path("/sys/kernel/tracing")
    FLUSH, RECOVER, FREE, IOCTL = (
        "kvm_make_all_cpus_request", "kvm_mmu_recover_huge_pages", "vfree",
        "kvm_set_memory_region")
    # With the MMU in Rust the former only calls the latter, and is not there when it is inlined.
    CLEAR = ("kvm_vm_ioctl_clear_dirty_log", "kvm_rs_clear_log")
    # In RCU's callbacks: of C for one table, of Rust for several.
    FREE_TABLES = ("tdp_mmu_free_sp_rcu_callback", "kvm_rs_free_pages")
    ROW_US = 500

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
        for functions in (self.CLEAR, self.FREE_TABLES):
            check(any([self.follow(function) for function in functions]),
                  f"{' and '.join(functions)} cannot be traced")
        for name, text in (("trace_clock", "x86-tsc"), ("trace", ""),
                           ("current_tracer", "function")):
            (self.tracing / name).write_text(text)

    def stop(self):
        """Returns the spans of time of each, [(begin, end)]."""
        text = (self.tracing / "trace").read_text()
        (self.tracing / "current_tracer").write_text("nop")
        (self.tracing / "set_ftrace_filter").write_text("")
        found = {"during_clear": [], "during_recovery": [], "in_callbacks": []}
        clearing, recovering, freeing = {}, {}, {}
        for thread, cpu, tsc, function in re.findall(
                r"^\s*\S.*-(\d+)\s+\[(\d+)\].*?(\d+): (\w+) <-", text, re.M):
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
            elif function in self.FREE_TABLES:
                if cpu in freeing and to_us(tsc - freeing[cpu]) < self.ROW_US:
                    found["in_callbacks"].append([freeing[cpu], tsc])
                freeing[cpu] = tsc
        found["during_clear"] = [span for span in found["during_clear"] if span[1]]
        return found
