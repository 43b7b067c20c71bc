"""What each instruction does, but for the floating-point ones: a function that makes a function of an Instruction.

`compiled` returns None where the machine itself is in charge: branches, exits, barriers.
"""

import re

import numpy as np

from ptxsim import floats
from ptxsim.errors import PTXError, RaceError, UnsupportedError
from ptxsim.formats import FLOAT, TYPE, UNSIGNED, integer, width
from ptxsim.parse import Instruction, split

LANE = np.uint32(31)
LOG_BYTES = {8: 0, 16: 1, 32: 2, 64: 3}
ARITHMETIC = {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "min": np.minimum, "max": np.maximum,
}  # fmt: skip
COMPARISONS = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
UNSIGNED_COMPARISONS = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
LOGIC = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": lambda x: ~x}
NOTHING = ("membar", "fence", "griddepcontrol", "nanosleep", "prefetch", "discard", "applypriority")


class Operands:
    """Of one instruction: readers and writers by position, and what its modifiers say."""

    def __init__(self, machine, instruction: Instruction) -> None:
        self.machine, self.instruction, self.args = machine, instruction, instruction.args
        self.op, self.modifiers, self.scope = instruction.op, instruction.modifiers, instruction.scope
        self.kinds = [word for word in self.modifiers if TYPE.match(word)]
        self.kind = self.kinds[-1] if self.kinds else None
        self.bits = width(self.kind) if self.kind else None

    def read(self, i, kind=None):
        return self.read_as(self.args[i], kind or self.kind)

    def read_as(self, operand, kind):
        return self.machine.reader(operand, kind, self.scope)

    def write(self, i=0):
        return self.write_to(self.args[i])

    def write_to(self, operand):
        return self.machine.writer(operand, self.scope)

    def has(self, *words):
        return any(word in self.modifiers for word in words)

    def first(self, *words):
        return next(word for word in self.modifiers if word in words)

    @property
    def unsupported(self):
        return UnsupportedError(self.instruction.text)


def compiled(machine, instruction: Instruction):
    try:
        return _compiled(Operands(machine, instruction))
    except (KeyError, IndexError, ValueError, TypeError, StopIteration) as error:
        raise UnsupportedError(f"{instruction.text} ({type(error).__name__}: {error})") from error


def _compiled(o: Operands):
    if o.op in ("bra", "ret", "exit"):
        return None
    if o.op in ("bar", "barrier"):
        return (lambda: None) if o.has("warp") else None
    if o.op in NOTHING:
        return lambda: None
    if o.op in ("trap", "call"):
        return lambda: _raise(PTXError(f"{o.op}, a failed assertion perhaps: {o.machine.here()}"))
    if o.op in BY_NAME:
        return BY_NAME[o.op](o)
    if o.kind in ("f32", "f64", "f16", "bf16", "f16x2", "bf16x2", "f32x2"):
        return floats.arithmetic(o)
    if o.kind == "pred":
        readers, write, function = [o.read(i) for i in range(1, len(o.args))], o.write(), LOGIC[o.op]
        return lambda: write(function(*[read() for read in readers]))
    if o.op in ("shl", "shr"):
        return shift(o)
    if o.op in ("mul", "mad"):
        return multiply(o)
    if o.op in ("div", "rem"):
        return divide(o)
    if o.op in BITS:
        return bits(o)
    if o.op not in ARITHMETIC or o.has("cc"):
        raise o.unsupported
    x, y, write, function = o.read(1), o.read(2), o.write(), ARITHMETIC[o.op]
    return lambda: write(function(x(), y()))


def _raise(error):
    raise error


# ---- moves ---------------------------------------------------------------------------------------------------------
def move(o: Operands):
    target, source = o.args
    if target.startswith("{"):
        parts = split(target[1:-1])
        bits_each, whole = o.bits // len(parts), o.read(1, f"u{o.bits}")
        writers, unsigned = [o.write_to(part) for part in parts], UNSIGNED[o.bits]

        def unpack():
            value = whole()
            for i, write in enumerate(writers):
                write((value >> unsigned(i * bits_each)).astype(UNSIGNED[bits_each]))

        return unpack
    if source.startswith("{"):
        parts = split(source[1:-1])
        bits_each, unsigned = o.bits // len(parts), UNSIGNED[o.bits]
        readers, write = [o.read_as(part, f"b{bits_each}") for part in parts], o.write()

        def pack():
            value = readers[0]().astype(unsigned)
            for i, read in enumerate(readers[1:], 1):
                value = value | (read().astype(unsigned) << unsigned(i * bits_each))
            write(value)

        return pack
    read, write = o.read(1), o.write()
    return lambda: write(read())


def convert_address(o: Operands):
    read, write = o.read(1, "u64"), o.write()
    return lambda: write(read())


def create_policy(o: Operands):
    write = o.write()
    return lambda: write(np.zeros(1, np.uint64))


def select(o: Operands):
    x, y, condition, write = o.read(1), o.read(2), o.read(3, "pred"), o.write()
    return lambda: write(np.where(condition(), x(), y()))


def compare(o: Operands):
    comparison, kind = o.modifiers[0], o.kind
    combined = o.modifiers[1] if o.modifiers[1] in ("and", "or", "xor") else None
    if kind in ("bf16", "f16x2", "bf16x2"):
        raise o.unsupported
    floating = kind in FLOAT
    if not floating and comparison in UNSIGNED_COMPARISONS:
        kind, comparison = "u" + kind[1:], UNSIGNED_COMPARISONS[comparison]
    x, y = o.read(1, kind), o.read(2, kind)
    other = o.read(3, "pred") if combined else None
    writers = [o.write_to(target) for target in o.args[0].split("|")]

    def run():
        p, q = x(), y()
        nan = np.isnan(p) | np.isnan(q) if floating else np.False_
        if comparison in ("num", "nan"):
            holds = nan if comparison == "nan" else ~nan
        elif comparison in COMPARISONS:
            holds = COMPARISONS[comparison](p, q) & ~nan
        else:  # unordered: ltu, neu ...
            holds = COMPARISONS[comparison[:2]](p, q) | nan
        results = [holds, ~holds]
        if combined:
            results = [LOGIC[combined](result, other()) for result in results]
        for write, result in zip(writers, results, strict=False):
            write(result)

    return run


# ---- memory --------------------------------------------------------------------------------------------------------
def load(o: Operands):
    if not o.has("param"):
        return load_memory(o)
    name, offset = o.machine.address(o.args[1])
    offset += o.machine.param_offsets[name]
    value = o.machine.params[offset : offset + o.bits // 8].copy().view(integer(o.kind, o.bits))
    write = o.write()
    return lambda: write(value)


def _access(o: Operands, where: str, values: str, write: bool):
    """Whether shared, operands of each element, bytes, and the function that finds the place."""
    if not (o.has("global") or any(word.startswith("shared") for word in o.modifiers)) or o.bits == 128:
        raise o.unsupported
    count = next((int(word[1]) for word in o.modifiers if re.match(r"v[248]$", word)), 1)
    size, machine, shared = o.bits // 8 * count, o.machine, not o.has("global")
    parts = split(values[1:-1]) if values.startswith("{") else [values]
    if shared:
        return shared, parts, size, machine.shared_place(where, o.scope, size)
    return shared, parts, size, machine.global_place(where, o.scope, size, write)


def load_memory(o: Operands):
    machine, bits_each = o.machine, o.bits
    shared, parts, size, place = _access(o, o.args[1], o.args[0], False)
    writers, dtype = [o.write_to(part) for part in parts], integer(o.kind, bits_each)

    def run():
        threads, offset = place()
        machine.check_initialised(shared, threads, offset, size)
        machine.check_race(shared, threads, offset, size)
        memory = (machine.shared if shared else machine.memory.data).view(dtype)
        for i, write in enumerate(writers):
            value = np.zeros(machine.n, dtype)
            value[threads] = memory[(offset >> LOG_BYTES[bits_each]) + i]
            write(value)

    return run


def store(o: Operands):
    machine, bits_each = o.machine, o.bits
    shared, parts, size, place = _access(o, o.args[0], o.args[1], True)
    readers = [o.read_as(part, f"b{bits_each}") for part in parts]

    def run():
        threads, offset = place()
        memory = (machine.shared if shared else machine.memory.data).view(UNSIGNED[bits_each])
        for i, read in enumerate(readers):
            value = np.broadcast_to(read(), (machine.n,))[threads]
            at = (offset >> LOG_BYTES[bits_each]) + i
            if machine.racecheck:
                element = offset + i * (bits_each // 8)
                machine.check_race(shared, threads, element, bits_each // 8, memory[at] == value)
                _check_agreement(machine, threads, at, value)
            memory[at] = value
        initialised = machine.shared_initialised if shared else machine.memory.initialised
        for byte in range(size):
            initialised[offset + byte] = True

    return run


def _check_agreement(machine, threads, at, value) -> None:
    """Threads that store to one place in one instruction store the same.

    But for the last bits of float32: where a multiply-add was fused into one side of a butterfly sum.
    """
    order = np.argsort(at, kind="stable")
    differs = (np.diff(at[order]) == 0) & (value[order][1:] != value[order][:-1])
    if not differs.any():
        return
    first, second = (v[differs].view(integer("s", v.dtype.itemsize * 8)) for v in (value[order][1:], value[order][:-1]))
    if value.dtype == np.uint32 and np.abs(first.astype(np.int64) - second).max() <= 4:
        machine.counts["stores of threads that differ in the last bits"] += int(differs.sum())
        return
    raise RaceError(
        f"{machine.kernel.name}: threads store different values to one place: "
        f"{machine.here(threads[order[1:][differs][0]])}"
    )


def atomic(o: Operands):
    machine, kind, size = o.machine, o.kind, o.bits // 8
    if kind in ("f16x2", "bf16x2", "bf16") or any(re.match(r"v\d", word) for word in o.modifiers):
        raise o.unsupported
    returns = o.op == "atom"
    what = o.first("add", "min", "max", "exch", "cas", "and", "or", "xor")
    shared = not o.has("global") and any(word.startswith("shared") for word in o.modifiers)
    where = o.args[returns]
    place = machine.shared_place(where, o.scope, size) if shared else machine.global_place(where, o.scope, size, True)
    operand, swapped = o.read(1 + returns), o.read(2 + returns) if what == "cas" else None
    write = o.write() if returns else None
    dtype = FLOAT.get(kind) or integer(kind, o.bits)

    def run():
        threads, offset = place()
        machine.check_initialised(shared, threads, offset, size)
        memory = (machine.shared if shared else machine.memory.data).view(dtype)
        values = np.broadcast_to(operand(), (machine.n,))[threads].view(dtype)
        swaps = np.broadcast_to(swapped(), (machine.n,))[threads].view(dtype) if swapped else None
        before = np.zeros(machine.n, dtype)
        for i in machine.rng.permutation(len(threads)) if machine.random else range(len(threads)):
            at = offset[i] // size
            old = before[threads[i]] = memory[at]
            if what == "cas":
                memory[at] = swaps[i] if old == values[i] else old
            else:
                memory[at] = values[i] if what == "exch" else ARITHMETIC[what](old, values[i])
        if write:
            write(before)
        machine.counts["atomics"] += len(threads)

    return run


def copy_async(o: Operands):
    """cp.async, which is done at once."""
    machine = o.machine
    if o.modifiers[0] != "async" or o.has("bulk"):
        raise o.unsupported
    if o.has("commit_group", "wait_group", "wait_all"):
        return lambda: None
    size = int(o.args[2], 0)
    target = machine.shared_place(o.args[0], o.scope, size)
    source = machine.global_place(o.args[1], o.scope, size, False)
    count = o.read(3, "u32") if len(o.args) > 3 else None

    def run():
        before = machine.mask
        copied = np.broadcast_to(count() if count else np.uint32(size), (machine.n,))
        threads, to = target()
        for byte in range(size):
            machine.shared[to + byte], machine.shared_initialised[to + byte] = 0, True
        some = copied > 0
        machine.mask = some if before is None else some & before
        if machine.mask.any():
            from_threads, offset = source()
            machine.check_initialised(False, from_threads, offset, 1)
            place = np.zeros(machine.n, np.int64)
            place[threads] = to
            for byte in range(size):
                inside = copied[from_threads] > byte
                machine.shared[place[from_threads][inside] + byte] = machine.memory.data[offset[inside] + byte]
        machine.mask = before

    return run


# ---- among the threads of a warp -----------------------------------------------------------------------------------
def shuffle(o: Operands):
    machine = o.machine
    targets = o.args[0].split("|")
    write = o.write_to(targets[0])
    write_inside = o.write_to(targets[1]) if len(targets) > 1 else None
    value, step, clamp = o.read(1, "b32"), o.read(2, "u32"), o.read(3, "u32")
    mode = o.first("bfly", "idx", "up", "down")

    def run():
        lane = (machine.thread & LANE).astype(np.int64)
        b, c = step().astype(np.int64) & 31, clamp().astype(np.int64)
        segment, limit = (c >> 8) & 31, c & 31
        last = (lane & segment) | (limit & ~segment & 31)
        source = {"bfly": lane ^ b, "idx": (lane & segment) | (b & ~segment & 31), "up": lane - b, "down": lane + b}[
            mode
        ]
        inside = source >= last if mode == "up" else source <= last
        source = np.arange(machine.n) - lane + np.where(inside, source, lane)
        if machine.mask is not None:
            absent = machine.mask & ~machine.mask[source]
            if absent.any():
                raise PTXError("a shuffle from an absent thread: " + machine.here(np.flatnonzero(absent)[0]))
        write(np.broadcast_to(value(), (machine.n,))[source])
        if write_inside:
            write_inside(inside)
        machine.counts["shuffles"] += machine.n if machine.mask is None else int(machine.mask.sum())

    return run


def over_warp(o: Operands):
    """redux and vote: one result for all threads of a warp."""
    machine, kind = o.machine, "pred" if o.op == "vote" else o.kind
    if machine.threads % 32:
        raise o.unsupported
    read, write = o.read(1, kind), o.write_to(o.args[0].split("|")[0])
    if o.op == "vote":
        ballot = lambda x: (x.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32)  # noqa: E731
        function = (lambda x: x.all(1)) if o.has("all") else (lambda x: x.any(1)) if o.has("any") else ballot
    else:
        name = o.first("add", "min", "max", "and", "or", "xor")
        ufunc = {"max": np.fmax, "min": np.fmin}[name] if kind == "f32" and not o.has("NaN") else ARITHMETIC[name]
        function = lambda x: ufunc.reduce(x, axis=1)  # noqa: E731

    def run():
        value = np.broadcast_to(read(), (machine.n,)).reshape(-1, 32)
        if machine.mask is not None:
            present = machine.mask.reshape(-1, 32)
            if (present.any(1) & ~present.all(1)).any():
                raise PTXError("a vote with absent threads: " + machine.here())
        write(np.repeat(function(value), 32))

    return run


def _matrix_places(o: Operands, address: str):
    """Of ldmatrix and stmatrix: a function of the number of an 8 by 8 matrix of 16 bits, whose rows eight threads point
    to, that returns where the two elements of each thread are."""
    machine = o.machine
    base, step = machine.address(address)
    pointer = machine.reader(base, "u32", o.scope)

    def places(number):
        pointers = np.broadcast_to(pointer(), (machine.n,)).astype(np.int64) + step
        lane = (machine.thread & LANE).astype(np.int64)
        rows = np.arange(machine.n) - lane + 8 * number
        threads = machine.active()
        for half in (0, 1):
            if o.has("trans"):
                place = pointers[rows + lane % 4 * 2 + half] + lane // 4 * 2
            else:
                place = pointers[rows + lane // 4] + lane % 4 * 4 + half * 2
            yield threads, machine.checked_shared(threads, place[threads], 2)

    return places


def load_matrix(o: Operands):
    machine, places = o.machine, _matrix_places(o, o.args[1])
    writers = [o.write_to(part) for part in split(o.args[0][1:-1])]

    def run():
        for number, write in enumerate(writers):
            value = np.zeros(machine.n, np.uint32)
            for half, (threads, offset) in enumerate(places(number)):
                machine.check_initialised(True, threads, offset, 2)
                machine.check_race(True, threads, offset, 2)
                value[threads] |= machine.shared.view(np.uint16)[offset >> 1].astype(np.uint32) << np.uint32(16 * half)
            write(value)

    return run


def store_matrix(o: Operands):
    machine, places = o.machine, _matrix_places(o, o.args[0])
    readers = [o.read_as(part, "b32") for part in split(o.args[1][1:-1])]

    def run():
        memory = machine.shared.view(np.uint16)
        for number, read in enumerate(readers):
            both = np.broadcast_to(read(), (machine.n,))
            for half, (threads, offset) in enumerate(places(number)):
                value = (both[threads] >> np.uint32(16 * half)).astype(np.uint16)
                machine.check_race(True, threads, offset, 2, memory[offset >> 1] == value)
                memory[offset >> 1] = value
                machine.shared_initialised[offset], machine.shared_initialised[offset + 1] = True, True

    return run


# ---- integers ------------------------------------------------------------------------------------------------------
def shift(o: Operands):
    value, step, write, most = o.read(1), o.read(2, "u32"), o.write(), o.bits - 1

    def run():
        x, s = value(), step()
        too_far = s > most
        s = np.minimum(s, most).astype(x.dtype)
        shifted = x << s if o.op == "shl" else x >> s
        filled = x >> x.dtype.type(most) if o.op == "shr" and o.kind[0] == "s" else x.dtype.type(0)
        write(np.where(too_far, filled, shifted))

    return run


def multiply(o: Operands):
    x, y, write = o.read(1), o.read(2), o.write()
    wide, high = o.has("wide"), o.has("hi")
    added = o.read(3, o.kind[0] + str(o.bits * 2 if wide else o.bits)) if o.op == "mad" else None
    if high and o.bits == 64:
        raise o.unsupported

    def run():
        p, q = x(), y()
        if wide or high:
            double = integer(o.kind, 2 * o.bits)
            product = p.astype(double) * q.astype(double)
            product = (product >> double(o.bits)).astype(p.dtype) if high else product
        else:
            product = p * q
        write(product + added() if added else product)

    return run


def divide(o: Operands):
    machine, x, y, write = o.machine, o.read(1), o.read(2), o.write()

    def run():
        p, q = x(), y()
        zero = q == 0
        q = np.where(zero, q.dtype.type(1), q)
        if zero.any() and (machine.mask is None or (machine.mask & zero).any()):
            machine.counts["integer divisions by zero"] += 1
        quotient = (
            p // q if p.dtype.kind == "u" else (np.abs(p) // np.abs(q) * (np.sign(p) * np.sign(q))).astype(p.dtype)
        )
        write(quotient if o.op == "div" else p - quotient * q)

    return run


def _lop3(a, b, c, table):
    table, result = int(table.flat[0]), np.zeros_like(a)
    for i in range(8):
        if table >> i & 1:
            result = result | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return result


def _permuted(o):
    if o.modifiers != ["b32"]:
        raise o.unsupported
    return _permute


def _permute(a, b, selector):
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.uint32(0)
    for i in range(4):
        choice = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = ((both >> ((choice & np.uint32(7)) * np.uint32(8)).astype(np.uint64)) & np.uint64(255)).astype(np.uint32)
        sign = np.where(byte >= 128, np.uint32(255), np.uint32(0))
        result = result | (np.where(choice & np.uint32(8), sign, byte) << np.uint32(8 * i))
    return result


def _funnel(o):
    def shifted(low, high, step):
        step = np.minimum(step, np.uint32(32)) if o.has("clamp") else step & LANE
        both, step = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32)), step.astype(np.uint64)
        return (both >> step if o.has("r") else (both << step) >> np.uint64(32)).astype(np.uint32)

    return shifted


def _field(o):
    if o.bits == 64:
        raise o.unsupported

    def field(x, position, length):
        position, length = (np.minimum(n & np.uint32(255), 32).astype(np.int64) for n in (position, length))
        x = x.astype(np.int64) & 0xFFFFFFFF
        mask = (np.int64(1) << length) - 1
        result = (x >> position) & mask
        if o.kind[0] == "s":
            sign = np.where(length == 0, 0, (x >> np.minimum(position + length - 1, 31)) & 1)
            result = np.where(sign == 1, result | ~mask, result)
        return result.astype(np.uint32)

    return field


def _insert(o):
    if o.bits == 64:
        raise o.unsupported

    def insert(value, into, position, length):
        position, length = ((n & np.uint32(255)).astype(np.uint64) for n in (position, length))
        mask = ((np.uint64(1) << length) - np.uint64(1)) << position
        return ((into.astype(np.uint64) & ~mask) | ((value.astype(np.uint64) << position) & mask)).astype(np.uint32)

    return insert


def _ones(x):
    return np.array([int(v).bit_count() for v in x.reshape(-1)], np.uint32)


def _leading_zeros(x):
    return np.array([x.dtype.itemsize * 8 - int(v).bit_length() for v in x.reshape(-1)], np.uint32)


def _reversed(x):
    return np.array([int(f"{int(v):032b}"[::-1], 2) for v in x.reshape(-1)], np.uint32)


BITS = {
    "not": lambda o: np.invert, "neg": lambda o: np.negative, "abs": lambda o: np.abs,
    "popc": lambda o: _ones, "clz": lambda o: _leading_zeros, "brev": lambda o: _reversed,
    "lop3": lambda o: _lop3, "prmt": _permuted, "shf": _funnel, "bfe": _field, "bfi": _insert,
}  # fmt: skip


def bits(o: Operands):
    of_kind = {"not": 1, "neg": 1, "abs": 1, "popc": 1, "clz": 1, "brev": 1, "bfe": 1, "bfi": 2}.get(o.op, 0)
    readers = [o.read(i, o.kind if i <= of_kind else "u32") for i in range(1, len(o.args))]
    write, function = o.write(), BITS[o.op](o)
    return lambda: write(function(*[read() for read in readers]))


BY_NAME = {
    "mov": move, "cvta": convert_address, "createpolicy": create_policy, "ld": load, "st": store, "atom": atomic,
    "red": atomic, "cp": copy_async, "shfl": shuffle, "redux": over_warp, "vote": over_warp, "setp": compare,
    "selp": select, "ldmatrix": load_matrix, "stmatrix": store_matrix, "cvt": floats.convert,
}  # fmt: skip
