#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Comments of Rust end at column 100, as checkpatch wants and rustfmt doesn't check; and what
follows a tag such as SAFETY begins with a capital letter, as coding-guidelines.rst wants.

    comments.py FILE...          lists lines that are otherwise; fails if there are any
    comments.py --fix FILE...    mends them; paragraphs that are too wide are wrapped anew
"""

import re
import sys
import textwrap
from pathlib import Path

WIDTH = 100
COMMENT = re.compile(r"( *)(//[/!]?)(?: (.*))?$")
ITEM = re.compile(r" *(?:[-*]|\d+\.) ")
TAGGED = re.compile(r"(// (?:SAFETY|INVARIANT|CAST|NOTE|PANIC): )([a-z])")
# What begins a paragraph without a blank line before it.
START = re.compile(r"#|\||\[[^]]+\]: |(?:SAFETY|INVARIANT|CAST|NOTE|PANIC): ")


def paragraphs(texts):
    """Splits the lines of one comment; True for those that may be wrapped."""
    fenced, para = False, []
    for text in texts:
        if text.startswith("```"):
            fenced = not fenced
        apart = fenced or not text or text.startswith(("```", "    ", "|", "#"))
        if para and (apart or ITEM.match(text) or START.match(text)):
            yield True, para
            para = []
        if apart:
            yield False, [text]
        else:
            para.append(text)
    if para:
        yield True, para


def wrap(lines):
    """The lines of a file, with the paragraphs that are too wide wrapped anew."""
    out, at = [], 0
    while at < len(lines):
        match = COMMENT.match(lines[at])
        if not match:
            out.append(lines[at])
            at += 1
            continue
        indent, mark = match[1], match[2]
        texts = []
        while at < len(lines) and (match := COMMENT.match(lines[at])):
            if (match[1], match[2]) != (indent, mark):
                break
            texts.append(match[3] or "")
            at += 1
        head = indent + mark
        for may, para in paragraphs(texts):
            if may and any(len(head) + 1 + len(text) > WIDTH for text in para):
                item = ITEM.match(para[0])
                para = textwrap.wrap(
                    " ".join(text.strip() for text in para),
                    WIDTH - len(head) - 1,
                    initial_indent=" " * (len(para[0]) - len(para[0].lstrip())),
                    subsequent_indent=" " * (item.end() if item else 0),
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            out += [f"{head} {text}".rstrip() for text in para]
    return out


def main():
    fix = sys.argv[1] == "--fix"
    bad = 0
    for name in sys.argv[1 + fix:]:
        lines = Path(name).read_text().splitlines()
        if fix:
            capital = [TAGGED.sub(lambda tag: tag[1] + tag[2].upper(), line) for line in lines]
            mended = wrap(capital)
            if mended != lines:
                Path(name).write_text("\n".join(mended) + "\n")
            continue
        for n, line in enumerate(lines, 1):
            if len(line) > WIDTH and COMMENT.match(line):
                print(f"{name}:{n}: {len(line)} columns; tests/check/comments.py --fix wraps it")
                bad += 1
            if TAGGED.search(line):
                print(f"{name}:{n}: no capital letter; tests/check/comments.py --fix writes one")
                bad += 1
    sys.exit(bool(bad))


main()
