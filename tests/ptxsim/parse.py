"""PTX text to basic blocks of instructions."""

import re
from collections import Counter
from typing import NamedTuple

from ptxsim.errors import PTXError, UnsupportedError
from ptxsim.formats import width


class Instruction(NamedTuple):
    op: str
    modifiers: list[str]
    args: list[str]
    predicate: tuple[bool, int] | None  # whether negated, register
    text: str
    line: tuple[int, int] | None  # file and line of the source
    scope: str  # of the names of registers


def split(text: str) -> list[str]:
    """At commas outside brackets."""
    parts, depth, part = [], 0, ""
    for c in text:
        depth += (c in "{[(") - (c in "}])")
        if c == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += c
    return [*parts, part.strip()] if part.strip() else parts


class Kernel:
    """An .entry: its parameters, shared memory, registers and basic blocks."""

    def __init__(self, ptx: str, name: str | None = None) -> None:
        source = re.sub(r"/\*.*?\*/", "", ptx, flags=re.S)
        files = re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', source, re.M)
        self.files = {int(number): file for number, file in files}
        source = "\n".join(re.sub(r"//.*", "", line) for line in source.splitlines())
        entry = re.search(r"\.entry\s+" + (re.escape(name) if name else r"([\w$]+)") + r"\s*\(", source)
        if not entry:
            raise PTXError(f"expected an .entry {name or ''}, but got none")
        self.name = name or entry[1]
        self.target = re.search(r"\.target\s+(\S+)", source)[1]
        end_of_params = source.index(")", entry.end())
        self.params = self._params(source[entry.end() : end_of_params])
        start = source.index("{", end_of_params)
        self.shared, self.static_shared = self._shared(source)
        self.registers: dict[str, int] = {}
        self.widths: list[int] = []
        self.blocks, self.labels = self._blocks(self._statements(source[start + 1 : _closing(source, start)]))

    def _params(self, text: str) -> list[tuple[str, str, int]]:
        """Name, type and offset of each."""
        params, offset = [], 0
        for param in split(text):
            words = param.split()
            kind, name = words[1].lstrip("."), words[-1]
            if "[" in name:
                raise UnsupportedError("a parameter that is an array of bytes: " + param)
            size = width(kind) // 8
            offset = -(-offset // size) * size
            params.append((name, kind, offset))
            offset += size
        return params

    def _shared(self, source: str) -> tuple[dict[str, int], int]:
        """Offsets of the names in shared memory, and the bytes of those of a fixed size; the others come behind."""
        pattern = r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?\s*;"
        offsets, dynamic, size = {}, [], 0
        for align, kind, name, count in re.findall(pattern, source):
            if count == "":
                dynamic.append(name)
                continue
            align = int(align or width(kind) // 8)
            offsets[name] = -(-size // align) * align
            size = offsets[name] + int(count or 1) * width(kind) // 8
        return offsets | dict.fromkeys(dynamic, -(-size // 128) * 128), size

    def _declare(self, statement: str, scope: str) -> None:
        _, kind, names = statement.split(None, 2)
        for declared in split(names):
            many = re.match(r"(\S+?)<(\d+)>$", declared)
            for name in [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [declared]:
                self.registers[scope + name] = len(self.widths)
                self.widths.append(width(kind.lstrip(".")))

    def _statements(self, body: str):
        """(text, scope, line); labels end in a colon and have no scope. Declares registers by the way."""
        body = re.sub(r"^(\s*\.loc\b[^\n;]*)$", r"\1;", body, flags=re.M)
        body = re.sub(r"^\s*([\w$]+):[ \t]*", r" .label \1;", body, flags=re.M)
        text, scopes, count, line = "", [""], 0, None
        for token in re.findall(r'"[^"]*"|[{};]|[^{};"]+', body):
            if token == "{" and not text.strip():
                count += 1
                scopes.append(f"scope{count}~")
            elif token == "}" and not text.strip():
                scopes.pop()
                text = ""
            elif token != ";":
                text += token
            else:
                statement, text = " ".join(text.split()), ""
                if statement.startswith(".label"):
                    yield statement.split()[1] + ":", None, line
                elif statement.startswith(".loc "):
                    line = tuple(int(number) for number in statement.split()[1:3])
                elif statement.startswith(".reg"):
                    self._declare(statement, scopes[-1])
                elif statement.startswith(".local"):
                    raise UnsupportedError("a stack: " + statement)
                elif statement and not statement.startswith(".pragma"):
                    yield statement, scopes[-1], line

    def _blocks(self, statements) -> tuple[list[list[Instruction]], dict[str, int]]:
        blocks, labels, block = [], {}, []
        self.histogram = Counter()
        for text, scope, line in statements:
            if scope is None:
                if block:
                    blocks.append(block)
                    block = []
                labels[text[:-1]] = len(blocks)
                continue
            guard = re.match(r"@(!?)([\w%$]+)\s+(.*)", text)
            words = (guard[3] if guard else text).split(None, 1)
            op, *modifiers = words[0].split(".")
            self.histogram[words[0]] += 1
            predicate = (guard[1] == "!", self.register(guard[2], scope)) if guard else None
            args = split(words[1]) if len(words) > 1 else []
            block.append(Instruction(op, modifiers, args, predicate, text, line, scope))
            if op in ("bra", "ret", "exit") or (op in ("bar", "barrier") and "warp" not in modifiers):
                blocks.append(block)
                block = []
        return ([*blocks, block] if block else blocks), labels

    def register(self, name: str, scope: str) -> int:
        return self.registers[scope + name if scope + name in self.registers else name]

    def is_register(self, name: str, scope: str) -> bool:
        return scope + name in self.registers or name in self.registers


def _closing(source: str, start: int) -> int:
    depth = 0
    for i in range(start, len(source)):
        depth += (source[i] == "{") - (source[i] == "}")
        if depth == 0:
            return i
    raise PTXError("expected a closing brace, but got none")
