#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Puts measured tables into a document.

usage: into.py DOCUMENT NAME <LINES

Replaces what stands between the lines "<!-- NAME: begin -->" and
"<!-- NAME: end -->" by standard input; in a file .rst, between ".. NAME: begin" and
".. NAME: end".
"""
import pathlib
import sys


def put_into(path, name, lines):
    """Replaces what stands between the marks called @name in the document @path."""
    text = path.read_text()
    before, after = (".. ", "") if path.suffix == ".rst" else ("<!-- ", " -->")
    begin, end = (f"{before}{name}: {word}{after}\n" for word in ("begin", "end"))
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        sys.exit(f"error: {path} has no place for it: it wants one line {begin.strip()}, "
                 f"and one line {end.strip()} after it")
    if not lines:
        sys.exit(f"error: there is nothing to put into {path}")
    head, rest = text.split(begin)
    path.write_text(head + begin + "\n".join(lines) + "\n" + end + rest.split(end)[1])


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    put_into(pathlib.Path(sys.argv[1]), sys.argv[2], sys.stdin.read().splitlines())


if __name__ == "__main__":
    main()
