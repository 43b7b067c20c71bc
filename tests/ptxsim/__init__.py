"""Runs the PTX that Triton compiles for NVIDIA GPUs, unmodified, on CPU tensors: numpy alone, no GPU, no driver.

    import ptxsim
    driver = ptxsim.install(90, racecheck=True)
    kernel[grid](*cpu_tensors)          # as ever, without TRITON_INTERPRET
    driver.log[-1].counts               # instructions, bytes and 32-byte sectors

All threads of a batch of CTAs are lanes of numpy arrays; each thread has its own program counter, and the lowest goes
first. What is checked: bounds (red zones around every buffer), alignment, reads of memory that nobody has written,
shuffles with absent lanes, barriers that not all threads reach and, with `racecheck`, two warps at one byte with no
barrier between them. What is not: what ptxas does after PTX, tensor cores, TMA, timing.
"""

from ptxsim.errors import AccessError, PTXError, RaceError, UnsupportedError
from ptxsim.parse import Kernel
from ptxsim.run import Driver, Launch, install, run

__all__ = ["AccessError", "Driver", "Kernel", "Launch", "PTXError", "RaceError", "UnsupportedError", "install", "run"]
