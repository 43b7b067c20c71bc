"""How long a loss should take on a GPU: the larger of bytes over bandwidth and instructions over issue rate.

A model, no measurement: caches, launches and latency are left out. `imbloss doctor` holds it against measured times.
"""

from dataclasses import dataclass

# Thread instructions a logit of (forward, backward) on sm_90 in bfloat16, as `python -m benchmarks aot` counts them.
INSTRUCTIONS = {
    "rows of 10": (47.9, 46.5),
    "rows of 100": (41.2, 29.4),
    "rows of 1000": (24.1, 13.3),
    "long rows": (7.2, 6.2),
    "dense": (31.9, 21.5),
    "elements": (65.2, 95.4),
}


@dataclass(frozen=True)
class Device:
    name: str
    bandwidth: float  # bytes a second, of the memory
    processors: int
    clock: float  # Hz
    lanes: int = 128  # thread instructions that a processor issues in a cycle

    @property
    def issue_rate(self) -> float:
        return self.processors * self.lanes * self.clock


# From the vendors' data sheets; an MI300X issues for 4 SIMDs of 16 lanes, two instructions at a time at most.
DEVICES = (
    Device("H100 SXM", 3.35e12, 132, 1.755e9),
    Device("A100 80 GB SXM", 2.04e12, 108, 1.41e9, 64),
    Device("RTX 4090", 1.01e12, 128, 2.52e9),
    Device("MI300X", 5.3e12, 304, 2.1e9, 64),
)


def kind(classes: int, inner: int = 1) -> str:
    """The row of INSTRUCTIONS for logits of shape (N, classes, inner)."""
    if inner > 1:
        return "dense"
    if classes <= 32:
        return "rows of 10"
    if classes < 400:
        return "rows of 100"
    return "rows of 1000" if classes < 4096 else "long rows"


def seconds(device: Device, of: str, logits: int, size: int, target_bytes: float = 0.0) -> tuple[float, float]:
    """Forward, which reads the logits, and backward, which reads them and writes as much; `size`: bytes of a logit.

    >>> forward, backward = seconds(DEVICES[0], "long rows", 2048 * 50257, 2)
    >>> f"{forward * 1e6:.0f} us, {backward * 1e6:.0f} us"
    '61 us, 123 us'
    """
    forward, backward = INSTRUCTIONS[of]
    read, moved = logits * size + target_bytes, 2 * logits * size + target_bytes
    return (
        max(read / device.bandwidth, forward * logits / device.issue_rate),
        max(moved / device.bandwidth, backward * logits / device.issue_rate),
    )
