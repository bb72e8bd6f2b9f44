# SPDX-License-Identifier: GPL-2.0
"""Draws mutants from cargo-mutants' list.

draw.py COUNT SEED DIRECTORY <LIST.json: so many, or "all"; the same for the same list and seed. Writes the
diff of each to a file in the directory, and says its number and name. The first is 1.
"""

import json
import pathlib
import random
import sys


def name(mutant: dict) -> str:
    """What cargo-mutants calls it: place and change."""
    start = mutant["span"]["start"]
    what = mutant["diff"].splitlines()[1].removeprefix("+++ ")
    return f"{mutant['file']}:{start['line']}:{start['column']}: {what}"


def main() -> None:
    seed, directory = int(sys.argv[2]), pathlib.Path(sys.argv[3])
    mutants = sorted(json.load(sys.stdin), key=name)
    count = len(mutants) if sys.argv[1] == "all" else int(sys.argv[1])
    if count > len(mutants):
        sys.exit(f"error: {count} mutants are wanted, and there are {len(mutants)}")
    drawn = random.Random(seed).sample(mutants, count)
    for number, mutant in enumerate(drawn, 1):
        lines = mutant["diff"].splitlines(keepends=True)
        # The name stands where patch looks for that of the file.
        head = [f"--- a/{mutant['file'].removeprefix('src/')}\n",
                f"+++ b/{mutant['file'].removeprefix('src/')}\n"]
        (directory / str(number)).write_text("".join(head + lines[2:]), encoding="utf-8")
        print(f"{number}\t{name(mutant)}")


main()
