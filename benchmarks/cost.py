"""How the cost of sampling grows with the rows: seconds, fitted exponents, a plot. For docs/sampling.md.

    python -m benchmarks cost [most rows]

One class has a fixed share of the rows. Exponents are slopes of a line through log seconds over log rows, by least
squares: over all sizes, and over the last decade, where what is negligible at small sizes no longer is.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import imbloss

IMAGE = Path("docs") / "img" / "sampling_cost.svg"
SIZES = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
SHARE, COLUMNS, CATEGORIES = 0.02, 32, 40
ROUNDS, BUDGET = (2, 50), 5.0  # least and most rounds of a size, and seconds after which no more than the least start


def numbers(rows: int) -> tuple[Tensor, Tensor]:
    y = (torch.arange(rows) < SHARE * rows).long()
    return torch.randn(rows, COLUMNS) + y.unsqueeze(1), y


def mixed(rows: int) -> tuple[Tensor, Tensor]:
    X, y = numbers(rows)
    return torch.cat([X[:, :5], torch.randint(CATEGORIES, (rows, 5))], dim=1), y


# name -> (data of a number of rows, what is timed, most rows)
SERIES: dict[str, tuple[Callable, Callable, int]] = {
    "SMOTE": (numbers, lambda x, y: imbloss.SMOTE(random_state=0).fit_resample(x, y), 1_000_000),
    "SMOTENC": (mixed, lambda x, y: imbloss.SMOTENC(range(5, 10), random_state=0).fit_resample(x, y), 1_000_000),
    "knn": (numbers, lambda x, y: imbloss.knn(x, 5, progress=False), 100_000),
}


def seconds(call: Callable, inputs: tuple[Tensor, Tensor]) -> float:
    """The least of the rounds."""
    taken, end = [], time.perf_counter() + BUDGET
    while len(taken) < ROUNDS[0] or (len(taken) < ROUNDS[1] and time.perf_counter() < end):
        start = time.perf_counter()
        call(*inputs)
        taken.append(time.perf_counter() - start)
    return min(taken)


def exponent(entry: dict[str, list], last_decade: bool = False) -> float:
    """Of the power of the rows that fits best."""
    points = np.log([entry["rows"], entry["seconds"]])
    if last_decade:
        points = points[:, [10 * n >= entry["rows"][-1] for n in entry["rows"]]]
    return float(np.polyfit(*points, 1)[0])


def measured(most: int) -> dict[str, dict[str, list]]:
    found = {}
    for name, (data, call, limit) in SERIES.items():
        rows, taken = [n for n in SIZES if n <= min(most, limit)], []
        call(*data(SIZES[0]))  # sets up what is set up once
        for n in rows:
            torch.manual_seed(0)
            taken.append(float(f"{seconds(call, data(n)):.4g}"))
            print(f"{name:8} {n:>9,} rows {taken[-1]:10.4f} s", flush=True)
        found[name] = {"rows": rows, "seconds": taken}
    return found


def table(series: dict[str, dict[str, list]]) -> str:
    sizes = sorted({n for entry in series.values() for n in entry["rows"]})
    lines = [
        "| seconds at rows | " + " | ".join(f"{n:,}" for n in sizes) + " | exponent | over the last decade |",
        "|---" * (len(sizes) + 3) + "|",
    ]
    for name, entry in series.items():
        by_rows = dict(zip(entry["rows"], entry["seconds"], strict=True))
        cells = [f"{by_rows[n]:.3g}" if n in by_rows else "" for n in sizes]
        exponents = [exponent(entry), exponent(entry, last_decade=True)]
        lines.append(f"| `{name}` | " + " | ".join([*cells, *(f"{e:.2f}" for e in exponents)]) + " |")
    return "\n".join(lines)


def figure(series: dict[str, dict[str, list]]):
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(7, 4.5), layout="constrained")
    axes = drawing.subplots()
    for name, entry in series.items():
        last = exponent(entry, last_decade=True)
        axes.plot(entry["rows"], entry["seconds"], marker="o", label=f"{name}: exponent {last:.2f} in the last decade")
    axes.set(xscale="log", yscale="log", xlabel="rows", ylabel="seconds")
    axes.grid(alpha=0.3)
    axes.legend()
    return drawing


def run(machine: dict, most: int, root: Path) -> None:
    series = measured(most)
    image = root / IMAGE
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in series.items())
    image.with_suffix(".json").write_text(f'{{"machine": {json.dumps(machine)},\n"series": {{\n{lines}\n}}}}\n')
    figure(series).savefig(image, metadata={"Date": None})
    image.write_text("\n".join(line.rstrip() for line in image.read_text().splitlines()) + "\n")
    print(table(series))
