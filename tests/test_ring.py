"""Several processes, each with rows of its own, find the neighbours and make the new rows of one with all rows."""

import multiprocessing
import os
import re
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import imbloss

SHARDS = {2: (37, 83), 3: (70, 0, 50), 4: (1, 64, 0, 55)}  # rows of each process
ROWS = 120
SAMPLERS = {
    "SMOTE": lambda **kw: imbloss.SMOTE(k_neighbors=4, random_state=3, **kw),
    "two classes": lambda **kw: imbloss.SMOTE(k_neighbors=2, random_state=4, sampling_strategy={1: 60, 2: 40}, **kw),
    "borderline-1": lambda **kw: imbloss.BorderlineSMOTE(k_neighbors=3, m_neighbors=6, random_state=5, **kw),
    "borderline-2": lambda **kw: imbloss.BorderlineSMOTE(
        k_neighbors=3, m_neighbors=6, kind="borderline-2", random_state=6, **kw
    ),
    "ADASYN": lambda **kw: imbloss.ADASYN(n_neighbors=4, random_state=7, **kw),
}


def normal(rows, d, dtype=torch.float32, seed=0):
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# name -> all points, all queries or None, and knn's other arguments
SEARCHES = {
    "float32": lambda: (normal(ROWS, 7), None, {"k": 5}),
    "float64": lambda: (normal(ROWS, 33, torch.float64), None, {"k": 5}),
    "half": lambda: (normal(ROWS, 5, torch.bfloat16), None, {"k": 3}),
    "queries": lambda: (normal(ROWS, 7), normal(ROWS, 7, seed=1), {"k": 4}),
    "cosine": lambda: (normal(ROWS, 7), normal(ROWS, 7, seed=1), {"k": 4, "metric": "cosine"}),
    "cosine, own": lambda: (normal(ROWS, 6), None, {"k": 4, "metric": "cosine"}),
    "copies": lambda: (normal(8, 3).repeat(15, 1), None, {"k": 20}),
    "all alike": lambda: (torch.ones(ROWS, 2), None, {"k": 9}),
    "a lattice": lambda: (torch.cartesian_prod(torch.arange(12.0), torch.arange(10.0)), None, {"k": 8}),
    "far away": lambda: (normal(ROWS, 3) * 1e-3 + 1e4, None, {"k": 6}),
    "all others": lambda: (normal(ROWS, 4), None, {"k": ROWS - 1}),
    "images": lambda: (normal(ROWS, 12).view(ROWS, 3, 2, 2), None, {"k": 2}),
}
KINDS = (torch.float32, torch.float64, torch.int32)


def shard(rank, sizes):
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def labelled(dtype=torch.float32):
    y = torch.repeat_interleave(torch.tensor([60, 36, 24]))[
        torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    ]
    x = normal(ROWS, 3) * 2 + y.unsqueeze(1)
    return (x * (100 if dtype == torch.int32 else 1)).to(dtype), y


def join(rank, sizes, rendezvous, seconds=60):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(sizes), timeout=timedelta(seconds=seconds)
    )
    return dist.group.WORLD


def message(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        return type(error), str(error)
    return None


def processes(rank, sizes, rendezvous, results):
    group = join(rank, sizes, rendezvous)
    mine, out = shard(rank, sizes), {}
    for name, search in SEARCHES.items():
        points, queries, options = search()
        asked = None if queries is None else queries[shard(rank, sizes[::-1])]
        out["knn", name] = imbloss.knn(points[mine], queries=asked, group=group, **options)
    out["array"] = imbloss.knn(SEARCHES["float32"]()[0][mine].numpy(), 2, group=group)
    for dtype in KINDS:
        X, y = (t[mine] for t in labelled(dtype))
        for name, make in SAMPLERS.items():
            sampler = make(group=group)
            X_new, y_new = sampler.fit_resample(X, y)
            out[name, dtype] = X_new, y_new, sampler.sample_info_, sampler.sampling_strategy_
            if hasattr(sampler, "in_danger_indices"):
                out[name, "danger", dtype] = sampler.in_danger_indices
    X, y = (t[mine] for t in labelled())
    out["strings"] = imbloss.SMOTE(random_state=0, group=group).fit_resample(
        X.numpy(), np.array(["a", "bb", "ccc"])[y.numpy()]
    )
    torch.manual_seed(rank)
    out["unseeded"] = imbloss.SMOTE(group=group).fit_resample(X, y)[0]
    out["errors"] = errors(group, rank, mine)
    torch.save(out, f"{results}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def errors(group, rank, mine):
    """What each process says when one of them is wrong."""
    last = rank == dist.get_world_size(group) - 1
    points = normal(ROWS, 4)[mine]
    X, y = (t[mine] for t in labelled())
    broken = torch.full((2, 4), torch.nan) if last else points
    state = 5 if last else 6
    return {
        "columns": message(imbloss.knn, points[:, : 3 if last else 4], 2, group=group),
        "dtype": message(imbloss.knn, points.double() if last else points, 2, group=group),
        "k": message(imbloss.knn, points, 3 if last else 2, group=group),
        "k of another type": message(imbloss.knn, points, "3" if last else 3, group=group),
        "too many": message(imbloss.knn, points, ROWS, group=group),
        "nan": message(imbloss.knn, broken, 2, group=group),
        "queries": message(imbloss.knn, points, 2, points if last else None, group=group),
        "shape": message(imbloss.knn, points.flatten() if last else points, 2, group=group),
        "random_state": message(imbloss.SMOTE(random_state=state, group=group).fit_resample, X, y),
        "k_neighbors": message(imbloss.SMOTE(k_neighbors=state, group=group).fit_resample, X, y),
        "few rows": message(imbloss.SMOTE(k_neighbors=24, group=group).fit_resample, X, y),
        "one class": message(imbloss.SMOTE(group=group).fit_resample, X, 0 * y),
        "a function": message(imbloss.SMOTE(sampling_strategy=len, group=group).fit_resample, X, y),
        "RandomState": message(imbloss.SMOTE(random_state=np.random.RandomState(0), group=group).fit_resample, X, y),
        "rows": message(imbloss.SMOTE(group=group).fit_resample, X[: -1 if last else None], y),
        "danger": message(imbloss.ADASYN(n_neighbors=2, group=group).fit_resample, X + 1e6 * y[:, None], y),
    }


def start(work, sizes, folder, *args):
    # children of a server that has imported torch once
    multiprocessing.get_context("forkserver").set_forkserver_preload(["imbloss", "numpy", "pytest"])
    args = (sizes, str(folder / "rendezvous"), str(folder), *args)
    mp.start_processes(work, args, nprocs=len(sizes), start_method="forkserver")


@pytest.fixture(scope="module", params=SHARDS, ids=lambda n: f"{n} processes")
def shared(request, tmp_path_factory):
    folder, sizes = tmp_path_factory.mktemp("ring"), SHARDS[request.param]
    start(processes, sizes, folder)
    return sizes, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(len(sizes))]


@pytest.mark.parametrize("name", SEARCHES)
def test_neighbours_are_those_of_one_process_bit_by_bit(shared, name):
    sizes, results = shared
    points, queries, options = SEARCHES[name]()
    distances, indices = imbloss.knn(points, queries=queries, **options)
    parts = sizes if queries is None else sizes[::-1]
    for result, part in zip(results, parts, strict=True):
        assert len(result["knn", name][0]) == part
    assert torch.equal(torch.cat([result["knn", name][1] for result in results]), indices)
    assert torch.equal(torch.cat([result["knn", name][0] for result in results]), distances)


def test_arrays_give_arrays(shared):
    _, results = shared
    distances, indices = imbloss.knn(SEARCHES["float32"]()[0].numpy(), 2)
    np.testing.assert_array_equal(np.concatenate([result["array"][0] for result in results]), distances)
    np.testing.assert_array_equal(np.concatenate([result["array"][1] for result in results]), indices)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_new_rows_are_those_of_one_process(shared, name, dtype):
    sizes, results = shared
    X, y = labelled(dtype)
    sampler = SAMPLERS[name]()
    X_want, _ = sampler.fit_resample(X, y)
    new, found = [], []
    for rank, result in enumerate(results):
        X_new, y_new, info, added = result[name, dtype]
        mine = shard(rank, sizes)
        assert X_new.dtype == dtype and added == sampler.sampling_strategy_
        assert torch.equal(X_new[: sizes[rank]], X[mine]) and torch.equal(y_new[: sizes[rank]], y[mine])
        assert ((info.parent >= mine.start) & (info.parent < mine.stop)).all()  # made where its parent is
        assert torch.equal(y[info.parent], y_new[sizes[rank] :])
        new.append(X_new[sizes[rank] :])
        found.append(torch.stack([info.parent.double(), info.neighbour.double(), info.gap.double()], 1))
    new, found = torch.cat(new), torch.cat(found)
    info = sampler.sample_info_
    want = torch.stack([info.parent.double(), info.neighbour.double(), info.gap.double()], 1)
    order, order_want = (torch.from_numpy(np.lexsort(rows.T.numpy())) for rows in (found, want))
    assert torch.equal(found[order], want[order_want])
    assert torch.equal(new[order], X_want[ROWS:][order_want])


@pytest.mark.parametrize("name", ["borderline-1", "borderline-2"])
def test_rows_in_danger_are_those_of_one_process(shared, name):
    _, results = shared
    sampler = SAMPLERS[name]()
    sampler.fit_resample(*labelled())
    for c, rows in sampler.in_danger_indices.items():
        parts = [result[name, "danger", torch.float32].get(c, rows[:0]) for result in results]
        assert torch.equal(torch.cat(parts), rows)


def test_labels_that_a_process_does_not_have_and_strings(shared):
    _, results = shared
    labels = np.concatenate([result["strings"][1] for result in results])
    assert dict(zip(*np.unique(labels, return_counts=True), strict=True)) == {"a": 60, "bb": 60, "ccc": 60}
    assert all(isinstance(result["strings"][0], np.ndarray) for result in results)


def test_without_a_seed_processes_draw_the_same_numbers(shared):
    _, results = shared
    assert sum(len(result["unseeded"]) for result in results) == 180


EXPECTED = {
    "columns": (
        ValueError,
        "the columns of points to be alike on all processes, but got 4 on process 0 and 3 on process",
    ),
    "dtype": (ValueError, "the dtype of points to be alike on all processes, but got torch.float32 on process 0 and"),
    "k": (ValueError, "expected k to be alike on all processes, but got 2 on process 0 and 3 on process"),
    "k of another type": (None, "expected k to be an int"),
    "too many": (ValueError, "expected k in [1, 119] among 120 points, each without itself, but got 120"),
    "nan": (ValueError, "expected points to be finite, but got nan in row 0"),
    "queries": (ValueError, "queries is None"),
    "shape": (None, "expected points of shape (n, d)"),
    "random_state": (ValueError, "expected random_state to be alike on all processes"),
    "k_neighbors": (ValueError, "expected the sampler to be alike on all processes"),
    "few rows": (ValueError, "expected more than k_neighbors=24 rows in a class to over-sample, but got 24 in class 2"),
    "one class": (ValueError, "expected y of at least two classes"),
    "a function": (TypeError, "expected sampling_strategy to be no function"),
    "RandomState": (TypeError, "expected random_state to be None, an int or a torch.Generator"),
    "rows": (ValueError, "labels, one a row of X"),
    "danger": (RuntimeError, "expected neighbours of other classes for ADASYN"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_error_of_one_process_is_an_error_of_all(shared, name):
    error, text = EXPECTED[name]
    for result in shared[1]:
        got, said = result["errors"][name]
        assert text in said
        assert got is error if error else issubclass(got, (TypeError, ValueError))


# ---- processes that end, or stop ---------------------------------------------------------------------------------
SECONDS = 2


def failing(rank, sizes, rendezvous, results, how):
    group = join(rank, sizes, rendezvous, SECONDS)
    points = normal(sum(sizes), 4)[shard(rank, sizes)]
    imbloss.knn(points, 2, group=group)
    if rank == 1:
        from imbloss.sampling import blocks

        add = blocks.Nearest.add

        def stop(self, *args):  # in the middle of a search
            add(self, *args)
            if how == "ends":
                os._exit(0)
            time.sleep(2 * SECONDS + 1)

        blocks.Nearest.add = stop
    start = time.monotonic()
    said = message(imbloss.knn, points, 2, group=group)
    torch.save((said, time.monotonic() - start), f"{results}/{rank}.pt")
    os._exit(0)


@pytest.mark.parametrize("how", ["ends", "stops"])
def test_a_process_that_ends_or_stops_is_an_error_of_the_others_within_the_time_out(how, tmp_path):
    sizes = (40, 30, 20)
    start(failing, sizes, tmp_path, how)
    for rank in (0, 2):
        (error, said), seconds = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert error is RuntimeError and seconds < 2 * SECONDS + 2
        assert re.search(r"expected all 3 processes of the group to take part, but one ended, failed or sent", said)
        assert f"time-out of {SECONDS} s" in said


# ---- a group of one ----------------------------------------------------------------------------------------------
@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_group_of_one_is_no_group(alone):
    X, y = labelled()
    assert all(map(torch.equal, imbloss.knn(X, 4, group=alone), imbloss.knn(X, 4)))
    for make in SAMPLERS.values():
        assert all(map(torch.equal, make(group=alone).fit_resample(X, y), make().fit_resample(X, y)))


def test_objects_streams_and_cleaners_are_refused_beside_group(alone):
    neighbors = pytest.importorskip("sklearn.neighbors")
    X, y = labelled()
    with pytest.raises(TypeError, match="expected k_neighbors to be an int beside group"):
        imbloss.SMOTE(k_neighbors=neighbors.NearestNeighbors(n_neighbors=4), group=alone).fit_resample(X, y)
    with pytest.raises(ValueError, match="expected a sampler without group for a stream"):
        imbloss.SMOTE(group=alone).stream(X, y, 8)
    with pytest.raises(ValueError, match="expected smote without group"):
        imbloss.SMOTEENN(smote=imbloss.SMOTE(group=alone)).fit_resample(X, y)


def test_what_is_no_group_is_refused(alone):
    with pytest.raises(TypeError, match="expected group to be a process group or None, but got"):
        imbloss.knn(torch.zeros(4, 2), 1, group="gloo")


def test_group_needs_torch_distributed():
    with pytest.raises(RuntimeError, match=r"expected torch.distributed to be initialised"):
        imbloss.knn(torch.zeros(4, 2), 1, group=object())
