#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""A file of the Rust MMU uses the files below it only: compares what each imports from the
crate with the table under "Layers" in rust-mmu.rst, whose rows are ordered from top to bottom.
Files of one directory, or of one row, may use each other."""

import re
import sys
from pathlib import Path

DOC = Path("Documentation/virt/kvm/x86/rust-mmu.rst")
RUST = Path("arch/x86/kvm/mmu/rust")
# The root declares the modules, and the tests look at everything.
EXEMPT = {"rust_mmu.rs", "kunit.rs", "kunit/every.rs"}


def rows():
    """The files and directories of each row, from top to bottom."""
    table = DOC.read_text().split("\nLayers\n", 1)[1].split("\nTypes that", 1)[0]
    for row in re.findall(r"^   \* - (``.*(?:\n       ``.*)*)", table, re.M):
        yield re.findall(r"``([^`]+)``", row)


def used(text):
    """The modules that a file names after `crate::`."""
    text = re.sub(r"//.*", "", text)
    for match in re.finditer(r"\bcrate::(\w+|\{)", text):
        if match[1] != "{":
            yield match[1]
            continue
        depth, item = 1, ""
        for char in text[match.end():]:
            depth += (char == "{") - (char == "}")
            if char in ",}" and depth <= 1:
                yield item.strip().split("::")[0].split(" ")[0]
                item = ""
            elif depth == 1:
                item += char
            if not depth:
                break


def main():
    rank = {}
    for n, names in enumerate(rows()):
        for name in names:
            rank[name.removeprefix("rust/").rstrip("/").removesuffix(".rs")] = n

    def layer(path):
        """The row of a file: its own, or that of the nearest directory that has one."""
        parts = path.removesuffix(".rs").removesuffix("/mod").split("/")
        for end in range(len(parts), 0, -1):
            if "/".join(parts[:end]) in rank:
                return rank["/".join(parts[:end])]
        return None

    bad = 0
    for file in sorted(RUST.rglob("*.rs")):
        name = str(file.relative_to(RUST))
        if name in EXEMPT:
            continue
        own = layer(name)
        if own is None:
            print(f"{name} is in no row of {DOC}")
            bad += 1
            continue
        for module in set(used(file.read_text())):
            below = layer(module) if module else None
            # Names of modules only: macros and constants are no layers.
            if below is not None and below < own:
                print(f"{name} uses {module}, which {DOC} has above it")
                bad += 1
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
