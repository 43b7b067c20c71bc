"""SMOTE.stream over a file of rows: resident memory and seconds, in a process of its own. For docs/sampling.md.

    python -m benchmarks stream [FILE [MIB [BATCHES]]]

Writes FILE, MIB mebibytes of float32 rows of 512 columns, one row in a hundred of the smaller class, and then one in
twenty, whose rows are more than a search reads at a time; makes BATCHES batches of 512 rows; removes FILE. "resident"
is the peak of VmHWM, pages of the file included, beyond VmRSS after `import torch, imbloss` and the labels; Linux only.
"""

import json
import os
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import imbloss

COLUMNS, BATCH = 512, 512
EVERY = (100, 20)  # one row in so many is of the smaller class


def write(path: str, size: int, sparse: bool) -> None:
    """Random rows, but for the larger class's where the file is sparse."""
    rows, numbers = size // (4 * COLUMNS), np.random.default_rng(0)
    with open(path, "wb") as file:
        if sparse:
            file.truncate(size)
            for row in range(0, rows, min(EVERY)):
                file.seek(row * 4 * COLUMNS)
                file.write(numbers.standard_normal(COLUMNS, np.float32).tobytes())
        else:
            for start in range(0, rows, 4096):
                file.write(numbers.standard_normal((min(4096, rows - start), COLUMNS), np.float32).tobytes())
        file.flush()
        os.fsync(file.fileno())  # so that nothing is written any more while batches are read


def measured(path: str, batches: int, every: int) -> dict[str, float]:
    X = np.memmap(path, np.float32, "r").reshape(-1, COLUMNS)
    y = (np.arange(len(X)) % every == 0).astype(np.int8)
    found: dict[str, float] = {"file": X.nbytes, "batches": batches, "imported": resident("VmRSS")}

    def work() -> None:
        start = time.perf_counter()
        stream = iter(imbloss.SMOTE(random_state=0).stream(X, y, BATCH))
        next(stream)
        found["first"] = time.perf_counter() - start
        start = time.perf_counter()
        for x, _ in islice(stream, batches - 1):
            assert x.shape == (BATCH, COLUMNS)
        found["each"] = (time.perf_counter() - start) / (batches - 1)

    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    work()
    found["resident"] = resident("VmHWM") - found["imported"]
    return found


def resident(field: str) -> int:
    # beside benchmarks.measure's: that imports every rival, whose memory would be there for use
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def table(path: str | None = None, mebibytes: int = 2048, batches: int = 200) -> None:
    from benchmarks.measure import in_own_process

    with tempfile.TemporaryDirectory() as folder:
        path = path or str(Path(folder) / "rows")
        write(path, mebibytes << 20, sparse=False)
        try:
            for every in EVERY:
                found = in_own_process("benchmarks.stream", path, str(batches), str(every))
                print(
                    f"one row in {every}: resident {found['resident'] / 2**20:.0f} MiB beyond the "
                    f"{found['imported'] / 2**20:.0f} MiB of imports, first batch after {found['first']:.1f} s, "
                    f"then {1e3 * found['each']:.1f} ms each, {torch.get_num_threads()} threads",
                    flush=True,
                )
        finally:
            os.unlink(path)


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
