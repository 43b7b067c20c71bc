"""What a kernel can do wrong."""


class PTXError(Exception):
    """A deadlock, a trap, a shuffle from a thread that is elsewhere."""


class UnsupportedError(PTXError):
    """PTX that is not simulated."""


class AccessError(PTXError):
    """Out of bounds, misaligned, or a read of what nobody has written."""


class RaceError(PTXError):
    """Two warps at one place in memory, one of them writing, with no barrier between them."""
