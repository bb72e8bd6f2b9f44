#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Compare the outcomes of the KVM selftests on the C and on the Rust MMU.

usage: compare.py [--rerun C RUST] [--differences FILE] [--subset] C[,C]... RUST

C and RUST are the TAP that tests/selftests/guest.sh made; TAP comes out. A test
passes if its outcome is the same on both, except that a test which the list
expects to pass must not fail on both. A difference is a failure, unless the list
says that the Rust MMU must be better: then C must fail, and Rust pass; or that the
test is for the Rust MMU only: then C must skip, and Rust pass. What there
was no time for ("not run: ..."), or what comes after a hang, counts as skipped; but
what fails on Rust and was not run on C is a failure, and so is the hang.

--differences writes the ids of tests worth running again, --rerun gives the TAP
of running them again, on both MMUs in one boot: an emulator has flakes, and
what comes out the same then is reported as a pass, with both outcomes. What is
no flake is never forgiven: a report of the kernel, a boot that broke off.
--subset: RUST is a part of C, and the rest does not matter, if RUST is complete.
"""
import argparse
import sys
from pathlib import Path

import tap


def is_flake_candidate(result):
    return result is not None and "kernel report" not in result.note


def not_run(result):
    return result.outcome == "skip" and result.note.startswith("not run:")


def judge(c, rust):
    """Returns whether the pair passes, and what to say about it."""
    if not_run(rust) or (not_run(c) and rust.outcome != "fail"):
        return True, f"SKIP {(rust if not_run(rust) else c).note}"
    if "must pass on Rust only" in c.note + rust.note:
        if (c.outcome, rust.outcome) == ("fail", "pass"):
            return True, f"better than C: {c.note[4:].strip()}"
        return False, f"C: {describe(c)}; Rust: {describe(rust)}"
    if "is for the Rust MMU only" in c.note + rust.note:
        if (c.outcome, rust.outcome) == ("skip", "pass"):
            return True, c.note
        return False, f"C: {describe(c)}; Rust: {describe(rust)}"
    if c.outcome != rust.outcome:
        return False, f"C: {describe(c)}; Rust: {describe(rust)}"
    if c.outcome == "skip":
        return True, f"SKIP {rust.note}"
    if c.outcome == "fail":
        if c.note.startswith("TODO") and is_flake_candidate(rust):
            return True, f"fails on both, as expected: {c.note[4:].strip()}"
        return False, f"fails on both: {rust.note}"
    return True, ""


def describe(result):
    return result.outcome + (f" ({result.note})" if result.outcome != "pass" else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rerun", nargs=2, type=Path)
    parser.add_argument("--differences", type=Path)
    parser.add_argument("--subset", action="store_true")
    parser.add_argument("c")
    parser.add_argument("rust")
    args = parser.parse_args()

    c_results, c_missing = tap.parse_all(args.c)
    rust_results, rust_missing = tap.parse_all(args.rust)
    again = [tap.parse(path)[0] for path in args.rerun] if args.rerun else [{}, {}]
    names = list(c_results) + [name for name in rust_results if name not in c_results]

    lines, differences = [], []
    for side, missing in (("C", c_missing), ("Rust", rust_missing))[args.subset:]:
        lines.append((not missing, f"the list ran to its end on {side}", missing or ""))
    for name in names:
        c, rust = c_results.get(name), rust_results.get(name)
        if rust is None and args.subset and not rust_missing:
            continue
        if c is None or rust is None:
            side, missing = ("C", c_missing) if c is None else ("Rust", rust_missing)
            given = rust if c is None else c
            if missing and not (c is None and given.outcome == "fail"):
                lines.append((True, name, f"SKIP not run: the list did not end on {side}"))
            else:
                lines.append((False, name, f"no result on {side}"))
            continue
        passed, note = judge(c, rust)
        if not passed and is_flake_candidate(c) and is_flake_candidate(rust):
            differences.append(name)
            c2, rust2 = (results.get(name) for results in again)
            if c2 and rust2:
                passed, second = judge(c2, rust2)
                if not second.startswith("SKIP"):
                    note = f"{note}; again, in one boot: {second or 'both pass'}"
        lines.append((passed, name, note))

    print("TAP version 13")
    print(f"1..{len(lines)}")
    for number, (passed, name, note) in enumerate(lines, 1):
        print(f"{'ok' if passed else 'not ok'} {number} - {name}"
              + (f" # {note}" if note else ""))
    if args.differences:
        args.differences.write_text("".join(f"{name}\n" for name in differences))
    return 0 if all(passed for passed, _, _ in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
