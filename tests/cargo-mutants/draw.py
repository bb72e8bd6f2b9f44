# SPDX-License-Identifier: GPL-2.0
"""Draws mutants from cargo-mutants' list.

draw.py DIRECTORY COUNT SEED <LIST.json: so many, or "all"; the same for the same list and seed.
draw.py DIRECTORY FILE <LIST.json: those that a file names, a line each, without line and column, so that the
draw stays the same when the sources change. Of several with the same name, "name (2)" is the second.

Writes the diff of each to a file in the directory, and says its number and name. The first is 1.
"""

import json
import pathlib
import random
import sys


def change(mutant: dict) -> str:
    """What cargo-mutants calls it, without the place."""
    return mutant["diff"].splitlines()[1].removeprefix("+++ ")


def name(mutant: dict) -> str:
    """What cargo-mutants calls it: place and change."""
    start = mutant["span"]["start"]
    return f"{mutant['file']}:{start['line']}:{start['column']}: {change(mutant)}"


def named(mutants: list[dict], file: str) -> list[dict]:
    """Those of the list that the file names, in its order."""
    found, seen = {}, {}
    for mutant in sorted(mutants, key=lambda m: (m["file"], m["span"]["start"]["line"],
                                                 m["span"]["start"]["column"])):
        of = f"{mutant['file']}: {change(mutant)}"
        seen[of] = seen.get(of, 0) + 1
        found[of if seen[of] == 1 else f"{of} ({seen[of]})"] = mutant
    lines = pathlib.Path(file).read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if not line.startswith("#")]
    for gone in [line for line in wanted if line not in found]:
        print(f"warning: the sources have no such mutant any more: {gone}", file=sys.stderr)
    return [found[line] for line in wanted if line in found]


def main() -> None:
    directory = pathlib.Path(sys.argv[1])
    mutants = sorted(json.load(sys.stdin), key=name)
    if len(sys.argv) == 3:
        drawn = named(mutants, sys.argv[2])
    else:
        count = len(mutants) if sys.argv[2] == "all" else int(sys.argv[2])
        if count > len(mutants):
            sys.exit(f"error: {count} mutants are wanted, and there are {len(mutants)}")
        drawn = random.Random(int(sys.argv[3])).sample(mutants, count)
    for number, mutant in enumerate(drawn, 1):
        lines = mutant["diff"].splitlines(keepends=True)
        # The name stands where patch looks for that of the file.
        head = [f"--- a/{mutant['file'].removeprefix('src/')}\n",
                f"+++ b/{mutant['file'].removeprefix('src/')}\n"]
        (directory / str(number)).write_text("".join(head + lines[2:]), encoding="utf-8")
        print(f"{number}\t{name(mutant)}")


main()
