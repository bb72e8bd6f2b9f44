#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Do our modules agree with a kernel on the structures that both know?

    btf.py VMLINUX OTHERS -- OURS

VMLINUX is a file with the BTF of the kernel, OTHERS are its modules that use headers of
ours, OURS the modules to be loaded. A structure of OURS that VMLINUX or OTHERS have as well
must have the same members at the same places. Members of our own may follow the last one
of theirs, unless a structure of theirs has this one inside.

Prints what does not agree, a line each; exit status 1 if there is any, 2 if BTF is missing.
"""
import struct
import sys
from pathlib import Path

(INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, PROTO,
 VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64) = range(1, 20)
# Bytes after a type's head, and of each of its elements.
INFO = {INT: 4, ARRAY: 12, VAR: 4, DECL_TAG: 4}
ELEMENT = {STRUCT: 12, UNION: 12, ENUM: 8, PROTO: 8, DATASEC: 12, ENUM64: 12}
TRANSPARENT = {TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG}


class Missing(Exception):
    """A file has no BTF, or none that can be read."""


def section(path, wanted):
    """The contents of a section of an ELF64 file, or None."""
    data = Path(path).read_bytes()
    if data[:5] != b"\x7fELF\2":
        raise Missing("is not a 64-bit ELF file")
    table, = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    heads = [struct.unpack_from("<IIQQQQ", data, table + size * n) for n in range(count)]
    for head in heads:
        name = heads[names][4] + head[0]
        if data[name:data.index(b"\0", name)] == wanted.encode():
            return data[head[4]:head[4] + head[5]]
    return None


class Btf:
    """The types of one BTF section, on top of those of `base`."""

    def __init__(self, data, base=None):
        magic, _, _, head, types, types_len, strings, strings_len = \
            struct.unpack_from("<HBBIIIII", data)
        if magic != 0xeb9f:
            raise Missing("is not BTF")
        self.base = base
        self.first = base.end if base else 1
        self.strings_first = base.strings_end if base else 0
        self.strings = data[head + strings:head + strings + strings_len]
        self.strings_end = self.strings_first + strings_len
        self.types = []
        self.data = data
        at, end = head + types, head + types + types_len
        while at < end:
            name, info, size = struct.unpack_from("<III", data, at)
            kind, vlen = info >> 24 & 0x7f, info & 0xffffff
            if not INT <= kind <= ENUM64:
                raise Missing(f"has BTF of a kind ({kind}) that is not known here")
            self.types.append((kind, name, vlen, info >> 31, size, at + 12))
            at += 12 + INFO.get(kind, 0) + vlen * ELEMENT.get(kind, 0)
        self.end = self.first + len(self.types)

    def string(self, at):
        """The string at an offset."""
        if at < self.strings_first:
            return self.base.string(at)
        at -= self.strings_first
        return self.strings[at:self.strings.index(b"\0", at)].decode()

    def at(self, index):
        """The BTF that has a type, and the type's tuple."""
        if index < self.first:
            return self.base.at(index)
        return self, self.types[index - self.first]

    def say(self, index, inside=False):
        """A type as a string; equal strings, equal layout. Named structures are not looked
        into: they are compared by themselves."""
        if index == 0:
            return "void"
        owner, (kind, name, vlen, flag, size, at) = self.at(index)
        name = owner.string(name)
        if kind in TRANSPARENT:
            return self.say(size, inside)
        if kind == PTR:
            return "*" if inside else self.say(size, True) + " *"
        if kind == ARRAY:
            element, _, count = struct.unpack_from("<III", owner.data, at)
            return f"{self.say(element, inside)}[{count}]"
        if kind in (STRUCT, UNION):
            word = "struct" if kind == STRUCT else "union"
            if name:
                return f"{word} {name}"
            if inside:
                return word
            return f"{word} {{{'; '.join(self.members(index))}}}:{size}"
        if kind == FWD:
            return f"{'union' if flag else 'struct'} {name}"
        if kind in (ENUM, ENUM64):
            return f"enum {name} {size}"
        if kind == PROTO:
            return "function"
        return f"{name} {size}"

    def members(self, index):
        """A line for each member: where it is, what it is called, its type."""
        owner, (_, _, vlen, flag, _, at) = self.at(index)
        for n in range(vlen):
            name, member, where = struct.unpack_from("<III", owner.data, at + 12 * n)
            bits = f":{where >> 24}" if flag and where >> 24 else ""
            yield f"{where & 0xffffff if flag else where} {owner.string(name)}{bits} " \
                f"{self.say(member)}"

    def structures(self):
        """Name -> (size, members), all definitions, of the types that are not `base`'s."""
        found = {}
        for number, (kind, name, vlen, _, size, _) in enumerate(self.types, self.first):
            if kind in (STRUCT, UNION) and name and vlen:
                key = f"{'struct' if kind == STRUCT else 'union'} {self.string(name)}"
                found.setdefault(key, []).append((size, list(self.members(number))))
        return found

    def embedded(self):
        """The names of structures that lie inside of others, or in arrays."""
        names = set()
        for number, (kind, _, _, _, _, at) in enumerate(self.types, self.first):
            if kind in (STRUCT, UNION):
                for line in self.members(number):
                    words = line.split(" ", 2)[2]
                    if not words.endswith("*"):
                        names.add(words.split("[")[0])
        return names


def read(path, vmlinux=None):
    """The BTF of a file; that of a module is on top of `vmlinux`, or of what it brings."""
    data = section(path, ".BTF")
    if not data:
        raise Missing("has no BTF")
    base = section(path, ".BTF.base") if vmlinux else None
    return Btf(data, Btf(base) if base else vmlinux)


def differences(ours, theirs, inside):
    """What is wrong with `ours`, given all of `theirs` of that name."""
    said = None
    for size, members in theirs:
        own_size, own = ours
        if (size, members) == (own_size, own):
            return None
        place = next((n for n, line in enumerate(members) if own[n:n + 1] != [line]), None)
        if place is None and len(own) > len(members) and not inside:
            return None
        if place is None:
            said = f"has members of our own, or another size ({own_size}, not {size})"
        else:
            now = own[place] if place < len(own) else "nothing"
            said = f"has {now!r} (bit, name, type) where the kernel has {members[place]!r}"
    return said


def main():
    args = sys.argv[1:]
    if args.count("--") != 1 or not args[:args.index("--")] or args[-1] == "--":
        sys.exit(__doc__)
    cut = args.index("--")
    vmlinux_path, others, ours = args[0], args[1:cut], args[cut + 1:]
    path = vmlinux_path
    try:
        vmlinux = read(vmlinux_path)
        known, inside = vmlinux.structures(), vmlinux.embedded()
        for path in others:
            btf = read(path, vmlinux)
            for name, definitions in btf.structures().items():
                known.setdefault(name, []).extend(definitions)
            inside |= btf.embedded()
        wrong, checked = [], set()
        for path in ours:
            for name, definitions in read(path, vmlinux).structures().items():
                for definition in definitions if name in known else ():
                    said = differences(definition, known[name], name in inside)
                    checked.add(name)
                    if said:
                        wrong.append(f"{name} in {Path(path).name} {said}")
    except Missing as why:
        print(f"{path} {why}")
        sys.exit(2)
    for line in sorted(set(wrong)):
        print(line)
    if not wrong:
        print(f"{len(checked)} structures agree")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
