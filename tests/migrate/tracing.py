# SPDX-License-Identifier: GPL-2.0
"""What KVM did when, by function tracing, and by RCU's tracepoints."""
import re
from pathlib import Path

from common import check, to_us


# The callbacks that free tables: of C for one, of Rust (call_rcu() in rust/support/rcu.rs) for
# several. No other callback of kvm.ko's has such a name.
CALLBACK = re.compile(r"func=(tdp_mmu_free_sp_rcu_callback|_R\w*3rcu8callback\w*) \[kvm\]")


def in_callbacks(trace):
    """Each callback in a trace that frees tables, and each row of them, as spans of time."""
    calls, rows, running = [], [], {}
    for cpu, tsc, event, rest in re.findall(
            r"^\s*\S.*-\d+\s+\[(\d+)\].*?(\d+): (rcu_\w+): (.*)$", trace, re.M):
        tsc = int(tsc)
        if cpu in running:
            calls.append([running[cpu], tsc])
            rows[-1][1] = tsc
        if event != "rcu_invoke_callback" or not CALLBACK.search(rest):
            running.pop(cpu, None)
            continue
        if cpu not in running:
            rows.append([tsc, tsc])
        running[cpu] = tsc
    return {"in_callbacks": calls, "in_rows_of_callbacks": rows}


class Tracing:
    """When KVM cleared the log, when it recovered huge pages as logging was switched off, and
    when RCU's callbacks freed their page tables, in ticks of the host's TSC.

    Clearing ends with a flush, if there was anything to clear; later flushes of the
    thread are of something else. After recovery, the slot's bitmap is freed.

    RCU says when it calls back, and when a batch of callbacks is done. So a callback ends where
    the next one on that CPU begins, or the batch ends. That is too high rather than too low: what
    interrupts a callback is in there, and what it takes to trace one event. Callbacks of KVM that
    follow one another are also a row.
    """
    tracing = Path("/sys/kernel/tracing")
    FLUSH, RECOVER, FREE, IOCTL = (
        "kvm_make_all_cpus_request", "kvm_mmu_recover_huge_pages", "vfree",
        "kvm_set_memory_region")
    # With the MMU in Rust the former only calls the latter, and is not there when it is inlined.
    CLEAR = ("kvm_vm_ioctl_clear_dirty_log", "kvm_rs_clear_log")
    EVENTS = ("rcu/rcu_invoke_callback", "rcu/rcu_batch_end")

    def follow(self, function):
        """Adds a function to those that are traced. Returns whether there is one of that name."""
        try:
            with open(self.tracing / "set_ftrace_filter", "a", encoding="ascii") as file:
                file.write(f"{function}\n")
        except OSError:
            return False
        return True

    def enable_events(self, enable):
        for event in self.EVENTS:
            (self.tracing / "events" / event / "enable").write_text("1" if enable else "0")

    def start(self):
        (self.tracing / "set_ftrace_filter").write_text("")
        for function in (self.FLUSH, self.RECOVER, self.FREE, self.IOCTL):
            check(self.follow(function), f"{function}() cannot be traced")
        check(any([self.follow(function) for function in self.CLEAR]),
              f"{' and '.join(self.CLEAR)} cannot be traced")
        self.enable_events(True)
        for name, text in (("trace_clock", "x86-tsc"), ("trace", ""),
                           ("current_tracer", "function")):
            (self.tracing / name).write_text(text)

    def stop(self):
        """Returns the spans of time of each, [(begin, end)]."""
        text = (self.tracing / "trace").read_text()
        (self.tracing / "current_tracer").write_text("nop")
        (self.tracing / "set_ftrace_filter").write_text("")
        self.enable_events(False)
        found = in_callbacks(text) | {"during_clear": [], "during_recovery": []}
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
