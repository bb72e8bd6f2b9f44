# SPDX-License-Identifier: GPL-2.0
"""What the model is fed with, and where each number is from.

Measured ones are read from the pages in results/, so that the model changes with them. The
others are fits (to one figure of those that were published, which then is not counted as reproduced) or
assumptions; both are varied by two in each direction by report.py.
"""
import re
from dataclasses import dataclass, replace
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "results"
MEASURED, FIT, ASSUMED = "measured", "fit", "assumption"


@dataclass(frozen=True)
class Input:
    value: float
    unit: str
    kind: str
    source: str


class Missing(Exception):
    """A page of results/ has no such row any more."""


def number(cell):
    found = re.match(r"\s*([\d,]+(?:\.\d+)?)", cell)
    if not found:
        raise Missing(f"'{cell.strip()}' is no number")
    return float(found[1].replace(",", ""))


def row(page, begins, after=""):
    """The cells of the first row of @page, behind @after, that begins like that, without the first."""
    text = (RESULTS / page).read_text(encoding="utf-8")
    for line in text.partition(after)[2].splitlines() if after else text.splitlines():
        if line.startswith(f"| {begins} |"):
            return [cell.strip() for cell in line.split("|")[2:-1]]
    raise Missing(f"results/{page} has no row '{begins}'")


def native(name, column):
    """Nanoseconds for 2 MiB on the older CPU; column 0 is C, 1 is Rust."""
    return number(row("bench-native.md", name, "## On an older CPU")[column])


def bench(name, column):
    """Instructions for 2 MiB; the first table is of those, and its first cell the size in MiB."""
    return number(row("bench.md", name)[1 + column])


def contention(party, column):
    """The p50 of a party, in ns, while the log is left alone."""
    text = (RESULTS / "contention.md").read_text(encoding="utf-8")
    part = text.split("| none of them |", 1)
    for line in part[1].splitlines() if len(part) == 2 else []:
        cells = [cell.strip() for cell in line.split("|")]
        if party in cells:
            return number(cells[cells.index(party) + 3 + column]) * 1000
    raise Missing(f"results/contention.md has no '{party}' under 'none of them'")


def rust_ns(instructions):
    """Rust's page-table work, of which only instructions were counted, at the rate of enabling."""
    per_instruction = native("enable", 1) / bench("enable (legacy, eager split)", 1)
    return instructions * per_instruction


def load():
    """All inputs, by name."""
    page = "[bench-native](bench-native.md), '{}'".format
    inputs = {}

    def add(name, value, unit, kind, source):
        inputs[name] = Input(value, unit, kind, source)

    for column, mmu in enumerate(("c", "rust")):
        add(f"{mmu}_enable", native("enable", column), "ns/2 MiB", MEASURED, page("enable"))
        add(f"{mmu}_clear", native("CLEAR, later pass, all pages dirty", column), "ns/2 MiB",
            MEASURED, page("CLEAR, later pass, all pages dirty"))
        add(f"{mmu}_disable", native("disable", column), "ns/2 MiB", MEASURED, page("disable"))
    scaled = "[bench](bench.md), '{}', instructions at the rate of enabling".format
    for name, what in (("rust_ahead", "split ahead, to stay small"),
                       ("rust_enable_small", "enable, split ahead"),
                       ("rust_disable_small", "disable, pages are to stay small")):
        add(name, rust_ns(bench(what, 1)), "ns/2 MiB", MEASURED, scaled(what))
    add("local", native("floor: 512 locked ANDs on a table", 0) / 512, "ns", MEASURED,
        page("floor: 512 locked ANDs on a table") + " / 512: a locked operation on a line of one's own")
    add("fault", contention("fault, takes `mmu_lock`", 0), "ns", MEASURED,
        "[contention](contention.md), p50 of a fault that takes `mmu_lock`, none of the ioctls")
    add("unmap", contention("notifier, hits", 0), "ns", MEASURED,
        "[contention](contention.md), p50 of a notifier that unmaps 2 MiB, the same")
    add("c_tables_per_lock", 1, "tables", MEASURED,
        "[bench](bench.md): C takes `mmu_lock` 514 times for 512 splits")
    add("rust_tables_per_lock", 64, "tables", MEASURED,
        "[bench](bench.md): Rust takes it 9 times; 128 MiB of tables are allocated at a time")
    add("transfer", 57, "ns", FIT, "the first pass of 2.94 s (commit a3fe5dbda0a4): a line that goes from CPU to CPU")
    add("write", 534, "ns", FIT, "the first pass of 0.14 s (commit a3fe5dbda0a4): the guest's write to a page, with PML")
    add("slot_change", 1e6, "ns", FIT, "enabling in 0.001 s (commit a3fe5dbda0a4): the memslots are replaced")
    add("exit", 2000, "ns", ASSUMED, "a VM exit for a fault, and the way back")
    add("alloc", 500, "ns", ASSUMED, "allocating and charging a zeroed page table")
    add("ipi", 2000, "ns", ASSUMED, "the slowest CPU's answer to the IPI of a TLB flush")
    add("keep", 1000, "ns", ASSUMED,
        "marking 64 MiB as to stay small, with `mmu_lock` held for write")
    add("fault_period", 1e6, "ns", ASSUMED, "each vCPU takes a fault that needs `mmu_lock` so often")
    add("notifier_period", 200e3, "ns", ASSUMED,
        "a notifier unmaps 2 MiB so often, as in [contention](contention.md)")
    return inputs


def values(inputs=None, **changed):
    """The inputs as a namespace, some of them multiplied by what is given."""
    inputs = dict(inputs or load())
    for name, factor in changed.items():
        inputs[name] = replace(inputs[name], value=inputs[name].value * factor)

    class Values:
        """Each input, as an attribute."""
    for name, item in inputs.items():
        setattr(Values, name, item.value)
    return Values
