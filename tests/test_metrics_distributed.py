"""Several processes with unequal data, one with none, report what one process does, to the last bit."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import imbloss

SHARDS = {2: (31, 170), 3: (120, 0, 81)}  # rows of each process
ROWS, CLASSES = 201, 4
KINDS = {
    "exact": {},
    "weighted": {},
    "histogram": {"curves": "histogram", "scores": "logits", "bins": 64},
    "none": {"curves": "none"},
    "binary": {"task": "binary"},
    "labels": {"task": "multilabel"},
    "histogram of labels": {"task": "multilabel", "curves": "histogram", "scores": "logits"},
}
SINGLE = {
    "g-mean": lambda: imbloss.GeometricMean(CLASSES),
    "balanced": lambda: imbloss.BalancedAccuracy(CLASSES),
    "iba": lambda: imbloss.IndexBalancedAccuracy(CLASSES, average=None),
    "shots": lambda: imbloss.ShotAccuracy(CLASSES, torch.tensor([500, 60, 30, 3])),
}


def batch(kind):
    generator = torch.Generator().manual_seed(3)
    z = (torch.randn(ROWS, CLASSES, generator=generator) * 4).round() / 2  # with ties
    y = torch.randint(0, CLASSES - 1, (ROWS,), generator=generator)  # the last class is never there
    weight = torch.randint(1, 4, (ROWS,), generator=generator) / 4 if kind == "weighted" else None
    if "labels" in kind:
        return z, (torch.rand(ROWS, CLASSES, generator=generator) < 0.3).long(), weight
    return (z[:, 0], y % 2, weight) if kind == "binary" else (z, y, weight)


def report(kind, rows):
    classes = 2 if kind == "binary" else CLASSES
    metric = imbloss.ImbalanceReport(classes, train_counts=torch.tensor([500, 60, 30, 3])[:classes], **KINDS[kind])
    z, y, weight = batch(kind)
    for part in rows.split(50):
        if len(part):
            metric.update(z[part], y[part], None if weight is None else weight[part])
    return metric


def numbers(kind, rows):
    metric = report(kind, rows)
    out = {"compute": metric.compute(), "text": metric.report(), "dict": repr(metric.to_dict())}
    if kind in ("exact", "weighted", "binary"):
        out["bootstrap"] = metric.bootstrap(20, areas=True)
    if kind != "none":
        out["lines"] = [line.get_ydata() for line in metric.plot()[1][1, 1].lines]
    metric.update(*(t[:3] for t in batch(kind) if t is not None))  # synchronised, and still this process's own
    out["after"] = metric.compute()["accuracy"]
    return out


def everything(rows):
    out = {kind: numbers(kind, rows) for kind in KINDS}
    z, y, _ = batch("exact")
    for name, make in SINGLE.items():
        metric = make()
        metric.update(z[rows], y[rows])
        out[name] = {"compute": metric.compute()}
    return out


def processes(rank, sizes, rendezvous, results):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(sizes), timeout=timedelta(seconds=120)
    )
    start = sum(sizes[:rank])
    torch.save(everything(torch.arange(start, start + sizes[rank])), f"{results}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return all(map(same, a, b))
    return (
        a == b
        if isinstance(a, str)
        else torch.equal(torch.as_tensor(a).nan_to_num(-9), torch.as_tensor(b).nan_to_num(-9))
    )


@pytest.fixture(scope="module")
def alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield everything(torch.arange(ROWS))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("world", SHARDS)
def test_processes_report_what_one_does(world, alone, tmp_path):
    mp.spawn(processes, (SHARDS[world], tmp_path / "rendezvous", tmp_path), nprocs=world)
    for rank in range(world):
        got = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for kind, want in alone.items():
            for what in set(want) - {"after"}:
                assert same(got[kind][what], want[what]), (kind, what, rank)
    # after another update: three samples from each process more than those that were there, and none twice
    kind = "exact"
    rows = torch.cat([torch.arange(ROWS), *[torch.arange(3)] * world])
    assert torch.equal(got[kind]["after"], report(kind, rows).compute()["accuracy"])


def test_order_and_batches_change_no_bit():
    order = torch.randperm(ROWS)
    for kind in KINDS:
        assert same(report(kind, order).compute(), report(kind, torch.arange(ROWS)).compute()), kind
