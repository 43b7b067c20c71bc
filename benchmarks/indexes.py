"""faiss's indexes beside exact search: seconds, memory, recall. For docs/sampling.md.

python -m benchmarks indexes [rows]
"""

import importlib
import time

import torch

import imbloss

ROWS, COLUMNS, CENTRES, QUERIES, NEIGHBOURS = 100_000, 32, 1000, 1000, 5
INDEXES = {
    '"flat"': {"index": "flat"},
    '"hnsw", ef_search=16': {"index": "hnsw", "ef_search": 16},
    '"hnsw"': {"index": "hnsw"},
    '"IVF1024,Flat"': {"index": "IVF1024,Flat"},
    '"IVF1024,SQ8"': {"index": "IVF1024,SQ8"},
}


def clusters(rows: int) -> torch.Tensor:
    """Overlapping ones, long-tailed."""
    shares = 1 / torch.arange(1, CENTRES + 1)
    centres = 2 * torch.randn(CENTRES, COLUMNS)
    return centres[torch.multinomial(shares, rows, replacement=True)] + torch.randn(rows, COLUMNS)


def timed(call) -> tuple[float, object]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def table(rows: int) -> str:
    torch.manual_seed(0)
    points = clusters(rows)
    queries = points[torch.randperm(rows)[:QUERIES]]
    exact = timed(lambda: imbloss.knn(points, NEIGHBOURS + 1, queries))[0]
    lines = [
        f"| {rows:,} x {COLUMNS} | fit, s | {QUERIES:,} queries, s | index, bytes a row | recall | k-th farther by |",
        "|---|---|---|---|---|---|",
        f"| `imbloss.knn` | | {exact:.3g} | {4 * COLUMNS} | 1 | 0 |",
    ]
    for name, options in INDEXES.items():
        neighbours = imbloss.FaissNeighbors(NEIGHBOURS + 1, **options)
        fit, _ = timed(lambda neighbours=neighbours: neighbours.fit(points))
        search, _ = timed(lambda neighbours=neighbours: neighbours.kneighbors(queries))
        size = len(importlib.import_module("faiss").serialize_index(neighbours.index_)) / rows
        found = neighbours.recall(points, NEIGHBOURS)
        lines.append(
            f"| {name} | {fit:.3g} | {search:.3g} | {size:.0f} | {found.recall:.3f} | {100 * found.excess:.2g} % |"
        )
    return "\n".join(lines)
