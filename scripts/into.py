#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Puts measured tables into a document.

usage: into.py DOCUMENT NAME <LINES

Replaces what stands between the lines "<!-- NAME: begin -->" and
"<!-- NAME: end -->" by standard input.
"""
import pathlib
import sys


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    path, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    text, lines = path.read_text(), sys.stdin.read()
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        sys.exit(f"error: {path} has no place for it: it wants one line {begin.strip()}, "
                 f"and one line {end.strip()} after it")
    if not lines.strip():
        sys.exit(f"error: there is nothing to put into {path}")
    head, rest = text.split(begin)
    path.write_text(head + begin + lines + end + rest.split(end)[1])


if __name__ == "__main__":
    main()
