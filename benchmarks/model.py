"""`python -m benchmarks predict`: imbloss/kernels/model.py for some devices and shapes, the table of docs/gpu.md."""

import math

from imbloss.kernels.model import DEVICES, kind, seconds

# name, shape, bytes of a logit, bytes of the targets of a pass
SHAPES = (
    ("focal", (65536, 10), 2),
    ("focal", (16384, 1000), 2),
    ("focal", (16384, 1000), 4),
    ("logit-adjusted", (8192, 8142), 2),
    ("cross entropy", (4096, 50257), 2),
    ("dense focal", (8, 19, 256, 512), 2),
    ("sigmoid focal", (65536, 80), 2),
)


def table() -> None:
    print("| loss, forward + backward in us | dtype | " + " | ".join(device.name for device in DEVICES) + " |")
    print("|---|---|" + "---:|" * len(DEVICES))
    for name, shape, size in SHAPES:
        logits, elements = math.prod(shape), name.startswith("sigmoid")
        inner = math.prod(shape[2:])
        of = "elements" if elements else kind(shape[1], inner)
        targets = 8 * (logits if elements else logits / shape[1])
        cells = []
        for device in DEVICES:
            forward, backward = (1e6 * t for t in seconds(device, of, logits, size, targets))
            bound = (size * logits + targets) / device.bandwidth, (2 * size * logits + targets) / device.bandwidth
            limits = "".join(
                "b" if 1e-6 * t <= b * 1.0001 else "i" for t, b in zip((forward, backward), bound, strict=True)
            )
            cells.append(f"{forward:.0f} + {backward:.0f} {limits}")
        shape_text = "x".join(map(str, shape))
        print(f"| {name} {shape_text} | {'bfloat16' if size == 2 else 'float32'} | " + " | ".join(cells) + " |")
