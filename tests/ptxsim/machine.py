"""The threads of a launch: their registers, the order in which they run, and what they may reach in memory."""

import re
from collections import Counter

import numpy as np

from ptxsim import instructions
from ptxsim.errors import AccessError, PTXError, RaceError, UnsupportedError
from ptxsim.formats import FLOAT, SIGNED, UNSIGNED, width
from ptxsim.memory import BASE, Memory, Shadow
from ptxsim.parse import Instruction, Kernel

SPECIAL = ("%tid", "%ntid", "%ctaid", "%nctaid", "%laneid", "%warpid", "%clock", "%globaltimer", "%smid", "%lanemask")
UNWRITTEN = 0x7FADBEEF  # what a register holds before anything is written to it
BARRIERS = ("bar", "barrier")


class Machine:
    """`schedule`: "lockstep", or "random" sets of warps that go ahead, with atomics in random order.

    `noise` disturbs the approximate instructions by as much as their documentation allows.
    """

    def __init__(
        self, kernel: Kernel, memory: Memory, grid, threads: int, dynamic_shared: int, args, *,
        racecheck=False, schedule="lockstep", seed=0, noise=False, threads_at_a_time=16384,
    ) -> None:  # fmt: skip
        self.kernel, self.memory, self.grid, self.threads = kernel, memory, (*grid, 1, 1)[:3], threads
        self.shared_size = max([*kernel.shared.values(), kernel.static_shared]) + dynamic_shared if kernel.shared else 0
        self.racecheck, self.random, self.noise, self.seed = racecheck, schedule == "random", noise, seed
        self.rng, self.counts, self.at_a_time = np.random.default_rng(seed), Counter(), threads_at_a_time
        self._store_params(args)
        self.code = [[(instructions.compiled(self, i), i) for i in block] for block in kernel.blocks]

    def _store_params(self, args) -> None:
        params = self.kernel.params
        if len(args) != len(params):
            raise PTXError(f"expected {len(params)} arguments, but got {len(args)}")
        self.params = np.zeros(max((offset + 8 for *_, offset in params), default=0), np.uint8)
        self.param_offsets = {name: offset for name, _, offset in params}
        for (_, kind, offset), value in zip(params, args, strict=True):
            bits = width(kind)
            raw = FLOAT[kind](value) if kind in FLOAT else UNSIGNED[bits](int(value) & ((1 << bits) - 1))
            self.params[offset : offset + bits // 8] = np.atleast_1d(raw).view(np.uint8)

    def run(self) -> Counter:
        count = self.grid[0] * self.grid[1] * self.grid[2]
        step = max(1, self.at_a_time // self.threads)
        with np.errstate(all="ignore"):
            for first in range(0, count, step):
                self._start(np.arange(first, min(first + step, count)))
                self._run_to_the_end()
        return self.counts

    # ---- operands
    def reader(self, operand: str, kind: str, scope: str):
        """A function that returns an operand as an array, of one element where all threads have the same."""
        bits = width(kind)

        def view(x):
            if kind == "pred":
                return x
            x = x if x.dtype.itemsize * 8 == bits else x.astype(UNSIGNED[bits])
            return x.view(FLOAT.get(kind) or (SIGNED[bits] if kind[0] == "s" else x.dtype))

        operand = operand.strip()
        if operand == "_":
            return lambda: None
        if operand.startswith("!"):
            negated = self.kernel.register(operand[1:], scope)
            return lambda: ~self.register(negated)
        if operand.startswith(SPECIAL):
            return lambda: view(self._special(operand))
        if self.kernel.is_register(operand, scope):
            register = self.kernel.register(operand, scope)
            return lambda: view(self.register(register))
        constant = self._constant(operand, kind)
        constant = constant if kind == "pred" else view(constant.reshape(1))
        return lambda: constant

    def _constant(self, operand: str, kind: str):
        if operand in self.kernel.shared:
            return np.array(self.kernel.shared[operand], np.uint64)
        if operand in ("true", "false"):
            return np.array(operand == "true")
        if re.match(r"0[fF][0-9a-fA-F]{8}$", operand):
            single = np.array(int(operand[2:], 16), np.uint32)
            return single.view(np.float32).astype(np.float64).view(np.uint64) if kind == "f64" else single
        if re.match(r"0[dD][0-9a-fA-F]{16}$", operand):
            return np.array(int(operand[2:], 16), np.uint64)
        if not re.match(r"-?(0x[0-9a-fA-F]+|\d+)U?$", operand):
            raise UnsupportedError("operand " + operand)
        number = int(operand.rstrip("U"), 0)
        if kind == "pred":
            return np.array(bool(number))
        if kind in FLOAT:
            return np.array(number, FLOAT[kind]).view(UNSIGNED[width(kind)])
        return np.array(number & 0xFFFFFFFFFFFFFFFF, np.uint64)

    def register(self, i: int):
        value = self.registers[i]
        if value is None:
            self.counts["reads of registers never written"] += 1
            value = self.registers[i] = np.full(self.n, self._unwritten(i))
        return value

    def _unwritten(self, i: int):
        bits = self.kernel.widths[i]
        return np.False_ if bits == 1 else UNSIGNED[bits](UNWRITTEN & ((1 << bits) - 1))

    def writer(self, operand: str, scope: str):
        """A function that puts an array into a register, where the thread is active."""
        if operand.strip() == "_":
            return lambda value: None
        i = self.kernel.register(operand.strip(), scope)
        bits = self.kernel.widths[i]

        def write(value):
            value = np.asarray(value)
            if bits == 1:
                value = value.astype(bool)
            else:
                if value.dtype.kind == "b":
                    value = value.astype(UNSIGNED[bits])
                if value.dtype.kind == "f":
                    value = value.view(UNSIGNED[value.dtype.itemsize * 8])
                if value.dtype.itemsize * 8 != bits:
                    value = value.astype((SIGNED if value.dtype.kind == "i" else UNSIGNED)[bits])
                value = value.view(UNSIGNED[bits])
            if value.shape != (self.n,):
                value = np.broadcast_to(value, (self.n,))
            if self.mask is not None:
                old = self.registers[i]
                value = np.where(self.mask, value, self._unwritten(i) if old is None else old)
            self.registers[i] = value

        return write

    def _special(self, name: str):
        name, _, axis = name.partition(".")
        axis = "xyz".find(axis) if axis else 0
        lane = self.thread & np.uint32(31)
        if name == "%tid":
            return self.thread if axis == 0 else np.zeros(1, np.uint32)
        if name == "%ntid":
            return np.array([self.threads if axis == 0 else 1], np.uint32)
        if name == "%ctaid":
            return self.cta_index[axis]
        if name == "%nctaid":
            return np.array([self.grid[axis]], np.uint32)
        if name == "%laneid":
            return lane
        if name == "%warpid":
            return self.thread >> np.uint32(5)
        if name == "%lanemask_lt":
            return (np.uint32(1) << lane) - np.uint32(1)
        if name in ("%smid", "%clock", "%clock64", "%globaltimer"):
            return np.zeros(1, np.uint64)
        raise UnsupportedError("special register " + name)

    # ---- the order of things
    def _start(self, ctas) -> None:
        """The threads of some CTAs, at the beginning."""
        count = len(ctas)
        self.n = self.threads * count
        self.warps_a_cta = -(-self.threads // 32)
        self.registers = [None] * len(self.kernel.widths)
        self.thread = np.tile(np.arange(self.threads, dtype=np.uint32), count)
        self.local_cta = np.repeat(np.arange(count), self.threads)
        self.cta = np.repeat(ctas, self.threads).astype(np.int64)
        x, y, _ = self.grid
        self.cta_index = [i.astype(np.uint32) for i in (self.cta % x, self.cta // x % y, self.cta // (x * y))]
        warp = (self.thread >> np.uint32(5)).astype(np.int64)
        self.local_warp = self.local_cta * self.warps_a_cta + warp
        self.warp = self.cta * self.warps_a_cta + warp
        self.shared_step = -(-self.shared_size // 128) * 128
        size = max(self.shared_step * count, 16)
        self.shared, self.shared_initialised = np.full(size, 0xA5, np.uint8), np.zeros(size, bool)
        self.shared_shadow = Shadow(size) if self.racecheck else None
        self.barriers = np.zeros(count, np.int32)  # that each CTA has passed
        self.block = np.zeros(self.n, np.int32)  # where each thread is
        self.waits = np.full(self.n, -1, np.int32)  # at which barrier, if at any
        self.done = np.zeros(self.n, bool)

    def _run_to_the_end(self) -> None:
        together = not self.random  # all threads at one block, none waiting or done
        while not self.done.all():
            if together:
                block, self.mask = int(self.block[0]), None
            else:
                ready = ~self.done & (self.waits < 0)
                if not ready.any():
                    self._release()
                    together = self._are_together()
                    continue
                if self.random:
                    share = self.rng.choice([0.15, 0.5, 0.9])
                    chosen = (self.rng.random(self._num_warps()) < share)[self.local_warp]
                    if not (ready & chosen).any():
                        continue
                    ready &= chosen
                block = int(self.block[ready].min())
                ready &= self.block == block
                self.mask = None if ready.all() else ready
            self._run_block(block)
            together = self._are_together()

    def _num_warps(self) -> int:
        return self.n // self.threads * self.warps_a_cta

    def _are_together(self) -> bool:
        if self.random or self.done.any() or (self.waits >= 0).any():
            return False
        return bool((self.block == self.block[0]).all())

    def _release(self) -> None:
        """All threads are done or wait: let them pass the barrier of their CTA."""
        for first in range(0, self.n, self.threads):
            span = slice(first, first + self.threads)
            waited_at = np.unique(self.waits[span][~self.done[span]])
            if len(waited_at) > 1:
                raise PTXError(f"{self.kernel.name}: a CTA deadlocks, its threads wait at the barriers {waited_at}")
        if self.done.any():
            self.counts["barriers with exited threads"] += 1
        self.waits[:] = -1
        self.barriers += 1

    def _run_block(self, block: int) -> None:
        threads = self.n if self.mask is None else int(self.mask.sum())
        for step, instruction in self.code[block]:
            self.current = instruction
            self.counts["thread instructions"] += threads
            if step is None:
                self._jump(block, instruction, threads)
                return
            if instruction.predicate is None:
                step()
                continue
            before = self.mask
            holds = self._holds(instruction)
            self.mask = holds if before is None else holds & before
            if self.mask.any():
                self.mask = None if self.mask.all() else self.mask
                step()
            self.mask = before
        active = np.ones(self.n, bool) if self.mask is None else self.mask
        self._go(active, block + 1)

    def _go(self, threads, block: int) -> None:
        self.block[threads] = block
        if block >= len(self.code):
            self.done |= threads

    def _holds(self, instruction: Instruction):
        negated, register = instruction.predicate
        value = self.register(register)
        return ~value if negated else value

    def _jump(self, block: int, instruction: Instruction, threads: int) -> None:
        """The end of a block: a branch, an exit or a barrier."""
        active = np.ones(self.n, bool) if self.mask is None else self.mask
        taken = active if instruction.predicate is None else active & self._holds(instruction)
        if instruction.op == "bra":
            if "uni" in instruction.modifiers:
                self._check_uniform(taken, active)
            self._go(active & ~taken, block + 1)
            self._go(taken, self.kernel.labels[instruction.args[0]])
        elif instruction.op in BARRIERS:
            if instruction.predicate is not None or (
                len(instruction.args) > 1 and int(instruction.args[1]) < self.threads
            ):
                raise UnsupportedError("a barrier of some threads: " + instruction.text)
            self.counts["barrier arrivals"] += threads // 32
            self._go(active, block + 1)
            self.waits[active] = int(instruction.args[0]) if instruction.args and instruction.args[0].isdigit() else 0
        else:
            self._go(active & ~taken, block + 1)
            self.done |= taken

    def _check_uniform(self, taken, active) -> None:
        warps = self.local_warp[active]
        count, total = np.bincount(warps, taken[active]), np.bincount(warps)
        if ((count != 0) & (count != total)).any():
            raise PTXError("bra.uni diverges: " + self.here())

    def here(self, lane: int | None = None) -> str:
        text = f"`{self.current.text}`"
        if self.current.line:
            text += f" ({self.kernel.files.get(self.current.line[0], '?')}:{self.current.line[1]})"
        return text if lane is None else f"{text}, CTA {self.cta[lane]}, thread {self.thread[lane]}"

    # ---- memory
    def active(self):
        return np.arange(self.n) if self.mask is None else np.flatnonzero(self.mask)

    @staticmethod
    def address(operand: str) -> tuple[str, int]:
        """Base and offset of [base + offset]."""
        parts = re.match(r"\[\s*([\w$%.]+)\s*(?:([+-])\s*(-?\w+))?\s*\]$", operand)
        if not parts:
            raise UnsupportedError("address " + operand)
        offset = int(parts[3], 0) if parts[3] else 0
        return parts[1], -offset if parts[2] == "-" else offset

    def global_place(self, operand: str, scope: str, size: int, write: bool):
        """A function that returns the active threads and where in memory they point, which is checked."""
        base, shift = self.address(operand)
        pointer, memory = self.reader(base, "u64", scope), self.memory

        def place():
            threads = self.active()
            offset = np.broadcast_to(pointer(), (self.n,))[threads].view(np.int64) + (shift - BASE)
            bad = (offset < 0) | (offset + size > len(memory.data))
            if not bad.any():
                bad = ~(memory.inside[offset] & memory.inside[offset + size - 1])
            if bad.any():
                self._fault(f"global {'store' if write else 'load'} out of bounds", threads, offset, bad)
            self._check_aligned(threads, offset + BASE, size, offset)
            self._count_traffic("store" if write else "load", offset, size, self.warp[threads])
            return threads, offset

        return place

    def _check_aligned(self, threads, address, size: int, offset) -> None:
        bad = address % size != 0
        if bad.any():
            self._fault(f"misaligned access of {size} bytes", threads, offset, bad)

    def _fault(self, what: str, threads, offset, bad) -> None:
        first = np.flatnonzero(bad)[0]
        where = self.memory.where(int(offset[first]))
        raise AccessError(f"{self.kernel.name}: {what}: {where}; {bad.sum()} threads; {self.here(threads[first])}")

    def _count_traffic(self, kind: str, offset, size: int, warp) -> None:
        self.counts[f"{kind} bytes"] += size * len(offset)
        self.counts[f"{kind} requests"] += len(np.unique(warp))
        sectors = np.unique((warp[:, None] << 40) + (offset >> 5)[:, None] + np.arange(max(size // 32, 1)))
        self.counts[f"{kind} sectors"] += len(sectors)
        if len(offset):
            name = self.memory.name(offset[0])
            self.counts[f"{kind} sectors of {name}"] += len(sectors)
            self.counts[f"{kind} sectors of {name} by {size} bytes a thread"] += len(sectors)

    def shared_place(self, operand: str, scope: str, size: int):
        base, shift = self.address(operand)
        pointer = self.reader(base, "u32", scope)

        def place():
            threads = self.active()
            offset = np.broadcast_to(pointer(), (self.n,))[threads].astype(np.int64) + shift
            return threads, self.checked_shared(threads, offset, size)

        return place

    def checked_shared(self, threads, offset, size: int):
        """Offsets in the shared memory of a CTA to those in that of all."""
        bad = (offset < 0) | (offset + size > self.shared_size) | (offset % size != 0)
        if bad.any():
            first = np.flatnonzero(bad)[0]
            raise AccessError(
                f"{self.kernel.name}: shared access of {size} bytes at {offset[first]} of {self.shared_size}: "
                f"{self.here(threads[first])}"
            )
        return offset + self.local_cta[threads] * self.shared_step

    def check_initialised(self, shared: bool, threads, offset, size: int) -> None:
        initialised = self.shared_initialised if shared else self.memory.initialised
        bad = ~(initialised[offset] & initialised[offset + size - 1])
        if bad.any():
            first = np.flatnonzero(bad)[0]
            where = "shared memory" if shared else self.memory.where(int(offset[first]))
            raise AccessError(f"{self.kernel.name}: read of uninitialised memory: {where}; {self.here(threads[first])}")

    def check_race(self, shared: bool, threads, offset, size: int, unchanged=None) -> None:
        shadow = self.shared_shadow if shared else self.memory.shadow
        if shadow is None:
            return
        barriers = self.barriers[self.local_cta[threads]]
        first, kind = shadow.access(offset, size, self.warp[threads], self.cta[threads], barriers, unchanged)
        if first is not None:
            where = "shared memory" if shared else self.memory.where(int(offset[first]))
            raise RaceError(f"{self.kernel.name}: {kind} race in {where}; {self.here(threads[first])}")
