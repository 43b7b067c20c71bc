"""Global memory with red zones, and the shadow that notices races."""

import bisect

import numpy as np

BASE = 0x7F1200000000
RED_ZONE = 4096


class Memory:
    """All buffers of a launch in one array, at addresses from BASE on."""

    def __init__(self) -> None:
        self.buffers: list[tuple[int, np.ndarray, str]] = []  # offset, contents, name
        self._masks = []  # which bytes of each may be touched, and which of them read
        self.size = RED_ZONE

    def add(self, array: np.ndarray, name: str, initialised=True, misalign: int = 0, visible=True) -> int:
        """The address of a copy, `misalign` bytes behind a multiple of 256. `visible`: which bytes there are."""
        offset = -(-self.size // 256) * 256 + misalign
        self.buffers.append((offset, np.ascontiguousarray(array), name))
        self._masks.append((visible, initialised))
        self.size = offset + array.nbytes + RED_ZONE
        return BASE + offset

    def freeze(self, racecheck: bool) -> None:
        size = -(-self.size // 16) * 16
        self.data = np.full(size, 0xCD, np.uint8)
        self.inside, self.initialised = np.zeros((2, size), bool)
        for (offset, array, _), (visible, initialised) in zip(self.buffers, self._masks, strict=True):
            span = slice(offset, offset + array.nbytes)
            if initialised:
                self.data[span] = array.reshape(-1).view(np.uint8)
            self.initialised[span], self.inside[span] = initialised, visible
        self.shadow = Shadow(size) if racecheck else None

    def copy_back(self, array: np.ndarray, address: int) -> None:
        """The bytes of a buffer that were written, now or before."""
        span = slice(address - BASE, address - BASE + len(array))
        written = self.initialised[span]
        array[written] = self.data[span][written]

    def name(self, offset: int) -> str:
        """Of the buffer of a place."""
        return self.buffers[bisect.bisect([start for start, *_ in self.buffers], offset) - 1][2]

    def where(self, offset: int) -> str:
        near = [b for b in self.buffers if b[0] - RED_ZONE <= offset < b[0] + b[1].nbytes + RED_ZONE]
        if not near:
            return "no buffer near"
        start, array, name = min(near, key=lambda b: max(b[0] - offset, offset - b[0] - b[1].nbytes))
        return f"{name}{offset - start:+d} of {array.nbytes} bytes"


class Shadow:
    """Of each byte: who wrote and who read last (warp and CTA), and how many barriers the CTA had passed by then.

    Two accesses race if at least one writes another value, of two warps, in two CTAs or with no barrier between them.
    """

    NOBODY, SEVERAL = -1, -2

    def __init__(self, size: int) -> None:
        self.writer, self.writer_cta, self.reader, self.reader_cta = np.full((4, size), self.NOBODY, np.int64)
        self.written, self.read = np.zeros((2, size), np.int32)

    def access(self, offset, size, warp, cta, barriers, unchanged=None):
        """The first access that races, and how, or (None, None). `unchanged`: a write of the value that is there."""
        write = unchanged is not None
        several = self._several(offset, warp) if not write else offset[:0]
        for at in (offset + byte for byte in range(size)):
            races = (self.writer[at] >= 0) & (self.writer[at] != warp)
            races &= (self.writer_cta[at] != cta) | (self.written[at] == barriers)
            if write:
                races &= ~unchanged
            if races.any():
                return np.flatnonzero(races)[0], "write-write" if write else "write-read"
            others_read = (self.reader[at] != self.NOBODY) & (self.reader[at] != warp)
            if write:
                races = others_read & ((self.reader_cta[at] != cta) | (self.read[at] == barriers)) & ~unchanged
                if races.any():
                    return np.flatnonzero(races)[0], "read-write"
                self.writer[at], self.written[at], self.writer_cta[at] = warp, barriers, cta
            else:
                same_time = others_read & (self.reader_cta[at] == cta) & (self.read[at] == barriers)
                other_cta = (self.reader[at] != self.NOBODY) & (self.reader_cta[at] != cta)
                self.reader[at] = np.where(same_time | other_cta, self.SEVERAL, warp)
                self.reader_cta[at] = np.where(other_cta, self.SEVERAL, cta)
                self.read[at] = barriers
        for byte in range(size if len(several) else 0):
            self.reader[several + byte] = self.SEVERAL
        return None, None

    @staticmethod
    def _several(offset, warp):
        """Places that several warps read in one access."""
        order = np.argsort(offset, kind="stable")
        twice = (np.diff(offset[order]) == 0) & (np.diff(warp[order]) != 0)
        return offset[order][1:][twice]
