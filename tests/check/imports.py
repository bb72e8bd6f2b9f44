#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Imports of Rust are vertical, as Documentation/rust/coding-guidelines.rst has them: each item of
a list is on a line of its own, and an empty comment after the last one makes rustfmt keep that.

    imports.py FILE...          lists those that are not; fails if there are any
    imports.py --fix FILE...    rewrites them
"""

import re
import sys
from pathlib import Path

USE = re.compile(r"^( *)((?:pub(?:\([a-z]+\))? )?use )([^;]*\{[^;]*);", re.M)


def items(text):
    """The items of a list, which ends at its brace, and what follows it."""
    found, item = [], ""
    while text:
        char, text = text[0], text[1:]
        if char == "{":
            inner, text = items(text)
            item = (item.strip(), inner)
        elif char in ",}":
            if isinstance(item, tuple) or item.strip():
                found.append(item if isinstance(item, tuple) else item.strip())
            item = ""
            if char == "}":
                return found, text
        elif not isinstance(item, tuple):
            item += char
    raise ValueError("a list of imports has no end")


def vertical(item, indent):
    """An item as it should stand, behind what is before it on its line."""
    if isinstance(item, str):
        return item
    prefix, inner = item
    if len(inner) == 1:
        return prefix + "{" + vertical(inner[0], indent) + "}"
    lines = [f"{indent}    {vertical(each, indent + '    ')}," for each in inner]
    return prefix + "{\n" + "\n".join(lines) + " //\n" + indent + "}"


def rewrite(match):
    """A declaration as it should stand."""
    indent, use, path = match.groups()
    prefix, rest = re.sub(r"//[^\n]*", "", path).split("{", 1)
    inner, _ = items(rest)
    return f"{indent}{use}{vertical((prefix.strip(), inner), indent)};"


def main():
    fix = sys.argv[1] == "--fix"
    bad = 0
    for name in sys.argv[1 + fix:]:
        text = Path(name).read_text()
        if fix:
            new = USE.sub(rewrite, text)
            if new != text:
                Path(name).write_text(new)
            continue
        for match in USE.finditer(text):
            if rewrite(match) != match[0]:
                line = text.count("\n", 0, match.start()) + 1
                print(f"{name}:{line}: imports; tests/check/imports.py --fix makes them vertical")
                bad += 1
    sys.exit(bool(bad))


main()
