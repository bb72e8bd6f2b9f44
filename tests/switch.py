# SPDX-License-Identifier: GPL-2.0
"""Puts many bugs into one build of a crate, each behind a switch.

switch.py CRATE MAP NUMBER=DIFF...: applies each diff (patch -p1) to a copy of the files that it names
and takes over the functions that differ: beside its own body, a function gets theirs, and
crate::mutant::which() says whose runs. Code that is right stays in its lines.

Says the numbers of the bugs that are not in a function's body. A bug is off in what the compiler
evaluates. MAP becomes a list of places: file, line, first and last column, number.

switch.py CRATE MAP <cargo's messages, as JSON: says which numbers have bodies that do not compile; exits
with 1 if there is another error.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

FN = re.compile(r"\bfn\s+[A-Za-z_]\w*")
# What is not code: comments, strings and characters. A lifetime is no character.
NO_CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(\#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?'(?:\\.[^']*|[^'\\])'""", re.S)


def blank(text: str) -> str:
    """The text with all that is not code replaced by blanks of the same length."""
    return NO_CODE.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def one_line(text: str) -> str:
    """The text in one line, without comments."""
    text = NO_CODE.sub(lambda m: " " if m.group().startswith("/") else m.group(), text)
    return re.sub(r"\s*\n\s*", " ", text)


def bodies(text: str) -> list[tuple[int, int]]:
    """Where the bodies of functions are, without those in bodies; their braces are included."""
    code, found, at = blank(text), [], 0
    while match := FN.search(code, at):
        at, depth = match.end(), 0
        # The signature ends with a brace, or with a semicolon if there is no body.
        while depth or code[at] not in "{;":
            depth += (code[at] in "([") - (code[at] in ")]")
            at += 1
        if code[at] == ";":
            continue
        start = at
        while True:
            depth += (code[at] == "{") - (code[at] == "}")
            at += 1
            if not depth:
                break
        found.append((start, at))
    return found


def files_of(diff: str) -> list[str]:
    """The files that a diff changes."""
    return re.findall(r"^--- a/(\S+)", diff, re.M)


def changed(text: str, diff: str, file: str) -> dict[int, str] | None:
    """The bodies, by their position in the file, that the diff replaces; None if it changes anything else."""
    part = re.search(rf"^--- a/{re.escape(file)}.*?(?=^--- a/|\Z)", diff, re.M | re.S)
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "file"
        path.write_text(text, encoding="utf-8")
        done = subprocess.run(["patch", "-s", "--no-backup-if-mismatch", str(path)], input=part.group(),
                              text=True, capture_output=True, check=False)
        if done.returncode:
            sys.exit(f"error: a diff of {file} does not apply: {done.stdout}{done.stderr}{diff}")
        new = path.read_text(encoding="utf-8")
    old_places, new_places = bodies(text), bodies(new)

    def rest(of: str, places: list[tuple[int, int]]) -> list[str]:
        ends = [0] + [end for _, end in places]
        starts = [start for start, _ in places] + [len(of)]
        return [of[end:start] for end, start in zip(ends, starts)]

    if rest(text, old_places) != rest(new, new_places):
        return None
    pairs = zip(old_places, new_places)
    own = {n: new[b[0]:b[1]] for n, (a, b) in enumerate(pairs) if text[a[0]:a[1]] != new[b[0]:b[1]]}
    # "impl Trait" is one type; two bodies with a closure each have two.
    opaque = any(re.search(r"->\s*impl\b[^{}]*$", text[:old_places[n][0]]) for n in own)
    return None if opaque else own


def switched(text: str, bugs: dict[int, dict[int, str]], file: str, places: list) -> str:
    """The file with these bugs: of each its number, and the bodies that it replaces."""
    out, at = [], 0
    for n, (start, end) in enumerate(bodies(text)):
        mine = {number: own[n] for number, own in bugs.items() if n in own}
        out.append(text[at:start])
        at = end
        if not mine:
            out.append(text[start:end])
            continue
        numbers = " | ".join(map(str, mine))
        out.append(f"{{ if !matches!(crate::mutant::which(), {numbers}) {text[start:end]}"
                   " else { match crate::mutant::which() {")
        for number, body in mine.items():
            before = "".join(out)
            column = len(before) - before.rfind("\n")
            out.append(f" {number} => {one_line(body)}")
            places.append((file, before.count("\n") + 1, column, column + len(out[-1]), number))
        out.append(" _ => ::core::unreachable!() } } }")
    return "".join(out) + text[at:]


def apply(crate: pathlib.Path, where: pathlib.Path, wanted: list[str]) -> None:
    """Puts the bugs into the crate."""
    files: dict[str, dict[int, dict[int, str]]] = {}
    texts: dict[str, str] = {}
    for bug in wanted:
        number, _, path = bug.partition("=")
        diff = pathlib.Path(path).read_text(encoding="utf-8")
        own = {}
        for file in files_of(diff):
            texts.setdefault(file, (crate / file).read_text(encoding="utf-8"))
            own[file] = changed(texts[file], diff, file)
        if not own:
            sys.exit(f"error: {path} is no diff")
        if None in own.values():
            print(number)
            continue
        for file, replaced in own.items():
            files.setdefault(file, {})[int(number)] = replaced
    places: list[tuple] = []
    for file, bugs in files.items():
        (crate / file).write_text(switched(texts[file], bugs, file, places), encoding="utf-8")
    where.write_text(json.dumps(places), encoding="utf-8")


def blame(crate: pathlib.Path, where: pathlib.Path) -> None:
    """Says whose bodies the compiler refuses."""
    places = json.loads(where.read_text(encoding="utf-8"))
    guilty, others = set(), []
    for line in sys.stdin:
        message = json.loads(line).get("message") or {}
        if message.get("level") != "error" or not message.get("spans"):
            continue
        found = set()
        for span in message["spans"]:
            # What is wrong in a macro is wrong where it is used.
            while span.get("expansion"):
                span = span["expansion"]["span"]
            begin = (span["line_start"], span["column_start"])
            end = (span["line_end"], span["column_end"])
            for file, row, first, last, number in places:
                if span["file_name"].endswith("/" + file) and begin <= (row, last) and (row, first) <= end:
                    found.add(number)
        guilty |= found
        if not found:
            others.append(message["rendered"])
    print("\n".join(map(str, sorted(guilty))))
    if others and not guilty:
        sys.exit("".join(others))


def main() -> None:
    crate, where = map(pathlib.Path, sys.argv[1:3])
    if len(sys.argv) > 3:
        apply(crate, where, sys.argv[3:])
    else:
        blame(crate, where)


main()
