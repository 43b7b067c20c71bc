"""Endless batches: their distribution is fit_resample's, they repeat, resume and divide, and memory stays small."""

import copy
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from torch.utils.data import DataLoader

import imbloss
from benchmarks import stream as stream_bench
from imbloss.sampling import stream as streams

SAMPLERS = {
    "SMOTE": imbloss.SMOTE(k_neighbors=3, random_state=0),
    "borderline-1": imbloss.BorderlineSMOTE(k_neighbors=3, m_neighbors=6, random_state=0),
    "borderline-2": imbloss.BorderlineSMOTE(k_neighbors=3, m_neighbors=6, kind="borderline-2", random_state=0),
    "ADASYN": imbloss.ADASYN(n_neighbors=4, random_state=0),
    "ROSE": imbloss.ROSE(random_state=0),
    "ROSE of all rows": imbloss.ROSE(keep_originals=False, bandwidth="dataset", shrink=0.5, random_state=0),
    "random": imbloss.RandomOverSampler(random_state=0),
    "shrinkage": imbloss.RandomOverSampler(shrinkage=0.3, random_state=0),
}
COUNTS = (150, 60, 30)
ROOT = Path(__file__).parent.parent
LIKELY = 1e-4  # p-values below it fail


def data(counts=COUNTS, d=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    y = torch.repeat_interleave(torch.tensor(counts))
    x = torch.randn(len(y), d, generator=generator) + 1.2 * y.unsqueeze(1)
    order = torch.randperm(len(y), generator=generator)
    return x[order].to(dtype), y[order]


def take(stream, count):
    return list(itertools.islice(stream, count))


def rows_of(stream, count):
    x, y = zip(*take(stream, count), strict=True)
    return torch.cat(x), torch.cat(y)


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(p, q) for x, y in zip(a, b, strict=True) for p, q in zip(x, y, strict=True)
    )


def among(x, rows):
    known = {row.numpy().tobytes() for row in rows}
    return torch.tensor([row.numpy().tobytes() in known for row in x])


@pytest.mark.parametrize("strategy", ["auto", {1: 90, 2: 60}, "minority"], ids=str)
def test_classes_and_originals_are_as_frequent_as_in_what_fit_resample_returns(strategy):
    X, y = data()
    sampler = imbloss.SMOTE(k_neighbors=3, random_state=0, sampling_strategy=strategy)
    want = torch.tensor(COUNTS), sampler.fit_resample(X, y)[1].bincount() - torch.tensor(COUNTS)
    x, labels = rows_of(sampler.stream(X, y, 500), 40)
    original = among(x, X)
    got = [(original & (labels == c)).sum().item() for c in range(3)] + [
        (~original & (labels == c)).sum().item() for c in range(3)
    ]
    expected = torch.cat(want).double()
    there = expected > 0
    assert not torch.tensor(got)[~there].any()
    expected = expected[there] / expected.sum() * 20_000
    assert chisquare(torch.tensor(got)[there], expected).pvalue > LIKELY


def test_shares_change_the_classes_and_not_how_many_of_their_rows_are_new():
    X, y = data()
    stream = imbloss.SMOTE(k_neighbors=3, random_state=0).stream(X, y, 500, shares={0: 6, 1: 0, 2: 2})
    assert stream.shares == {0: 0.75, 1: 0.0, 2: 0.25}
    assert stream.new_shares == {0: 0.0, 1: 0.6, 2: 0.8}
    x, labels = rows_of(stream, 20)
    new = int((~among(x, X)).sum())
    counts = labels.bincount(minlength=3)
    assert chisquare(counts[[0, 2]], [7500, 2500]).pvalue > LIKELY and counts[1] == 0
    assert chisquare([counts[2] - new, new], [counts[2] * 0.2, counts[2] * 0.8]).pvalue > LIKELY


def test_originals_of_a_class_are_equally_frequent():
    X, y = data()
    x, labels = rows_of(imbloss.RandomOverSampler(random_state=3).stream(X, y, 1000), 20)
    number = {row.numpy().tobytes(): i for i, row in enumerate(X)}
    drawn = torch.tensor([number[row.numpy().tobytes()] for row in x])
    assert torch.equal(y[drawn], labels)
    for c in range(3):
        assert chisquare(drawn[labels == c].bincount(minlength=len(X))[y == c]).pvalue > LIKELY


@pytest.mark.parametrize("name", SAMPLERS)
def test_rows_are_distributed_as_those_of_fit_resample(name):
    X, y = data()
    # ADASYN rounds row by row: to no effect where there are many new ones
    change = {"sampling_strategy": {1: 1500, 2: 900}} if name == "ADASYN" else {}
    parts = [changed(name, random_state=seed, **change).fit_resample(X, y) for seed in range(25)]
    X_new, y_new = (torch.cat(part) for part in zip(*parts, strict=True))
    x, labels = rows_of(changed(name, **change).stream(X, y, 1000), 12)
    for c in range(3):
        theirs, ours = X_new[y_new == c], x[labels == c]
        for column in range(2):
            edges = theirs[:, column].quantile(torch.linspace(0, 1, 13)[1:-1])
            table = torch.stack(
                [torch.bucketize(rows[:, column].contiguous(), edges).bincount(minlength=12) for rows in (theirs, ours)]
            )
            # fit_resample returns each original once, which varies less than a draw does: p is too large, not too small
            assert chi2_contingency(table.numpy()).pvalue > LIKELY, (c, column)


def changed(name, **parameters):
    sampler = copy.copy(SAMPLERS[name])
    vars(sampler).update(parameters)
    return sampler


@pytest.mark.parametrize("name", ["SMOTE", "borderline-1", "borderline-2", "ADASYN"])
def test_new_rows_are_between_a_row_and_one_of_its_neighbours(name):
    X, y = data(dtype=torch.float64)
    sampler = SAMPLERS[name]
    k = sampler.n_neighbors if name == "ADASYN" else sampler.k_neighbors
    x, labels = rows_of(sampler.stream(X, y, 100), 2)
    new = ~among(x, X)
    for row, c in zip(x[new], labels[new], strict=True):
        members = (y == c).nonzero().squeeze(1)
        points, own = (X, members) if name == "borderline-2" else (X[members], torch.arange(len(members)))
        ends = points[imbloss.knn(points, k)[1][own]]  # (members, k, d)
        start = points[own].unsqueeze(1)
        along = ends - start
        gap = ((row - start) * along).sum(2) / along.square().sum(2)
        off = (start + gap.unsqueeze(2) * along - row).norm(dim=2)
        assert ((off < 1e-9) & (gap > -1e-9) & (gap < 1 + 1e-9)).any()


# ---- the same batches --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SAMPLERS)
def test_batches_repeat_and_resume(name):
    X, y = data()
    want = take(SAMPLERS[name].stream(X, y, 16), 9)
    stream = SAMPLERS[name].stream(X, y, 16)
    begun = take(stream, 4)
    state = json.loads(json.dumps(stream.state_dict()))
    assert same(begun + take(stream, 5), want)  # iterating goes on
    other = changed(name, random_state=99).stream(X, y, 16)
    assert not same(take(other, 1), want[:1])
    other.load_state_dict(state)
    assert same(take(other, 5), want[4:])
    assert not same(want[:1], want[1:2])


def test_an_epoch_is_another_stream():
    X, y = data()
    stream = SAMPLERS["SMOTE"].stream(X, y, 16)
    first = take(stream, 3)
    stream.set_epoch(1)
    second = take(stream, 3)
    assert not same(first, second)
    stream.set_epoch(0)
    assert same(take(stream, 3), first)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_file_in_blocks_gives_the_batches_of_a_tensor(name, tmp_path):
    X, y = data(d=5)
    want = take(SAMPLERS[name].stream(X, y, 32), 6)
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=tuple(X.shape))
    mapped[:] = X.numpy()
    stream = SAMPLERS[name].stream(mapped, y.numpy(), 32, memory=7 * 20)  # 7 rows
    assert isinstance(stream._data.source, streams._File)
    tolerance = (
        {"rtol": 1e-6, "atol": 1e-6} if name in ("ROSE", "ROSE of all rows", "shrinkage") else {"rtol": 0, "atol": 0}
    )
    for (x, labels), (x_want, labels_want) in zip(take(stream, 6), want, strict=True):
        assert isinstance(x, np.ndarray) and x.dtype == np.float32 and labels.dtype == y.numpy().dtype
        torch.testing.assert_close(torch.from_numpy(x), x_want, **tolerance)
        assert torch.equal(torch.from_numpy(labels), labels_want)


def test_neighbours_are_searched_for_as_rows_are_drawn(monkeypatch):
    X, y = data((300, 200))
    want = take(SAMPLERS["SMOTE"].stream(X, y, 8), 12)
    monkeypatch.setattr(streams, "AT_ONCE", 0)
    stream = SAMPLERS["SMOTE"].stream(X, y, 8)
    assert not stream._maker._found.any()
    asked = []
    search = stream._maker._search
    monkeypatch.setattr(stream._maker, "_search", lambda code, bases: (asked.append(len(bases)), search(code, bases)))
    assert same(take(stream, 12), want)
    assert 0 < sum(asked) < 200 and len(asked) < 6  # for several batches together


VIEWS = {
    "whole": lambda m: m,
    "offset": lambda m: m[50:],
    "every other": lambda m: m[::2],
    "backwards": lambda m: m[::-1],
    "plain": np.asarray,
    "folded": lambda m: m.reshape(len(m), 2, 2),
}


@pytest.mark.parametrize("view", [*VIEWS, "columns", "float64, big-endian", "integers"])
def test_views_of_maps_are_read_from_their_files(view, tmp_path):
    X, y = data(d=4)
    dtype = {"float64, big-endian": ">f8", "integers": "<i2"}.get(view, "<f4")
    mapped = np.memmap(tmp_path / "x", dtype, "w+", offset=4096 + 12, shape=tuple(X.shape))
    mapped[:] = X.numpy() * 10
    viewed = mapped[:, 1:3] if view == "columns" else VIEWS.get(view, lambda m: m)(mapped)
    labels = y.numpy()[-len(viewed) :]
    stream = SAMPLERS["SMOTE"].stream(viewed, labels, 64)
    assert isinstance(stream._data.source, streams._File)
    want = SAMPLERS["SMOTE"].stream(np.array(viewed), labels, 64)
    for (x, c), (x_want, c_want) in zip(take(stream, 3), take(want, 3), strict=True):
        np.testing.assert_array_equal(x, x_want)
        np.testing.assert_array_equal(c, c_want)


def test_what_is_not_in_the_file_is_read_from_the_array(tmp_path):
    X, y = data()
    X.numpy().tofile(tmp_path / "x")
    changed = np.memmap(tmp_path / "x", np.float32, "c", shape=tuple(X.shape))
    changed += 1
    read = np.memmap(tmp_path / "x", np.float32, "r", shape=tuple(X.shape))
    (tmp_path / "x").unlink()
    (tmp_path / "x").write_bytes(bytes(X.numel() * 4))  # another file
    for array in (changed, read):
        stream = SAMPLERS["random"].stream(array, y.numpy(), 64)
        assert isinstance(stream._data.source, streams._Array)
        assert among(torch.from_numpy(take(stream, 1)[0][0]), torch.from_numpy(np.array(array))).all()


# ---- workers and ranks -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("workers", [1, 2])
def test_a_loader_gives_the_same_batches_whatever_its_workers(workers):
    X, y = data()
    want = take(SAMPLERS["SMOTE"].stream(X, y, 16), 10)
    loader = DataLoader(SAMPLERS["SMOTE"].stream(X, y, 16), batch_size=None, num_workers=workers)
    assert same(take(loader, 10), want)


def test_a_loader_goes_on_where_training_was():
    X, y = data()
    want = take(SAMPLERS["SMOTE"].stream(X, y, 16), 8)
    stream = SAMPLERS["SMOTE"].stream(X, y, 16)
    stream.load_state_dict(stream.state_dict(position=5))
    assert same(take(DataLoader(stream, batch_size=None, num_workers=2), 3), want[5:])


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_loaders_resume(workers):
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    X, y = data()
    want = take(SAMPLERS["SMOTE"].stream(X, y, 16), 9)

    def loader():
        return loaders.StatefulDataLoader(
            SAMPLERS["SMOTE"].stream(X, y, 16), batch_size=None, num_workers=workers, snapshot_every_n_steps=1
        )

    first = loader()
    batches = iter(first)
    begun = [next(batches) for _ in range(5)]
    assert same(begun, want[:5])
    second = loader()
    second.load_state_dict(first.state_dict())
    assert same(take(second, 4), want[5:])


def test_ranks_share_the_stream_and_resume_as_another_number_of_them():
    X, y = data()
    want = take(SAMPLERS["SMOTE"].stream(X, y, 16), 12)
    ranks = [SAMPLERS["SMOTE"].stream(X, y, 16, num_replicas=3, rank=r) for r in range(3)]
    got = [take(stream, 2) for stream in ranks]
    assert same([got[i % 3][i // 3] for i in range(6)], want[:6])
    states = [stream.state_dict() for stream in ranks]
    assert states[0] == states[1] == states[2] and states[0]["position"] == 6
    for r in range(2):
        stream = SAMPLERS["SMOTE"].stream(X, y, 16, num_replicas=2, rank=r)
        stream.load_state_dict(states[0])
        assert same(take(stream, 3), want[6 + r :: 2])


def test_a_pickled_stream_of_a_file_does_not_carry_its_rows(tmp_path):
    import pickle

    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(4096, 64))
    mapped[:] = np.random.default_rng(0).standard_normal(mapped.shape)
    y = (np.arange(4096) < 64).astype(np.int64)
    stream = SAMPLERS["SMOTE"].stream(mapped, y, 16)
    held = pickle.dumps(stream)
    assert len(held) < mapped.nbytes // 8
    for (x, _), (x_want, _) in zip(take(pickle.loads(held), 2), take(stream, 2), strict=True):
        np.testing.assert_array_equal(x, x_want)


# ---- kinds, dtypes, errors ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8], ids=str)
def test_batches_have_the_dtype_and_the_shape_of_rows(dtype):
    X, y = data(d=6)
    X = (20 * X + 100).clamp(0, 255).to(dtype).view(-1, 2, 3)
    for name in ("SMOTE", "ROSE", "random"):
        x, labels = take(SAMPLERS[name].stream(X, y.to(torch.int16), 40), 1)[0]
        assert x.shape == (40, 2, 3) and x.dtype == dtype and labels.dtype == torch.int16


def test_labels_may_be_strings_and_x_a_frame():
    pandas = pytest.importorskip("pandas")
    X, y = data()
    labels = np.array(["cat", "dog", "eel"])[y]
    frame = pandas.DataFrame(X.numpy())
    stream = SAMPLERS["SMOTE"].stream(frame, pandas.Series(labels), 32, shares={"cat": 0, "dog": 1, "eel": 1})
    x, c = take(stream, 1)[0]
    assert isinstance(x, np.ndarray) and set(c) == {"dog", "eel"}


def test_random_rows_may_be_nan_and_bool():
    X, y = data()
    X[::3] = torch.nan
    assert take(SAMPLERS["random"].stream(X, y, 64), 1)[0][0].isnan().any()
    assert take(SAMPLERS["random"].stream(X > 0, y, 64), 1)[0][0].dtype == torch.bool


@pytest.mark.parametrize("at", [7, 200])
def test_a_nan_is_an_error_once_its_row_is_read(at):
    X, y = data()
    row = int((y == 0).nonzero()[at % 150])
    X[row, 1] = torch.inf
    stream = SAMPLERS["SMOTE"].stream(X, y, 256)
    with pytest.raises(ValueError, match=f"expected X to be finite, but got inf in row {row}"):
        take(stream, 40)


def test_a_scikit_learn_object_finds_the_same_neighbours():
    neighbors = pytest.importorskip("sklearn.neighbors")
    X, y = data()
    want = take(SAMPLERS["SMOTE"].stream(X, y, 32), 3)
    found = imbloss.SMOTE(k_neighbors=neighbors.NearestNeighbors(n_neighbors=4), random_state=0)
    assert same(take(found.stream(X, y, 32, memory=64), 3), want)


def test_random_state_is_whatever_samplers_take():
    X, y = data()
    for state in (lambda: torch.Generator().manual_seed(4), lambda: np.random.RandomState(4)):
        batches = [take(imbloss.SMOTE(random_state=state()).stream(X, y, 8), 2) for _ in range(2)]
        assert same(*batches)
    assert not same(*(take(imbloss.SMOTE().stream(X, y, 8), 2) for _ in range(2)))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"batch_size": 0}, ValueError, "expected batch_size >= 1"),
        ({"batch_size": 2.5}, (TypeError, ValueError), "expected batch_size"),
        ({"memory": 0}, ValueError, "expected memory >= 1"),
        ({"shares": [1, 1, 1]}, TypeError, "expected shares to be a dict"),
        ({"shares": {0: 1, 1: 1}}, ValueError, "expected shares of the classes"),
        ({"shares": {0: 1, 1: -1, 2: 1}}, ValueError, "expected shares >= 0 and finite, but got -1 for class 1"),
        ({"shares": {0: 0, 1: 0, 2: 0}}, ValueError, "expected a share > 0"),
        ({"shares": {0: "1", 1: 0, 2: 0}}, TypeError, "expected shares to be numbers"),
        ({"num_replicas": 2, "rank": 2}, ValueError, "expected rank in"),
        ({"y": torch.zeros(240)}, ValueError, "expected y of at least two classes"),
        ({"y": torch.zeros(3)}, ValueError, "expected y of 240 labels"),
        ({"X": torch.zeros(240)}, ValueError, "expected X of shape"),
        ({"X": "rows"}, TypeError, "expected X to be a tensor"),
        ({"X": torch.zeros(240, 0)}, ValueError, "expected X of at least one column"),
        ({"X": np.zeros((240, 2), complex)}, TypeError, "expected X of numbers"),
        ({"X": torch.zeros(240, 2, dtype=torch.complex64)}, TypeError, "expected X of real numbers"),
        ({"X": torch.zeros(0, 2), "y": torch.zeros(0)}, ValueError, "expected y of at least two classes"),
    ],
)
def test_errors_name_what_was_expected(change, error, message):
    X, y = data()
    with pytest.raises(error, match=message):
        SAMPLERS["SMOTE"].stream(**{"X": X, "y": y, "batch_size": 8, **change})


def test_a_class_of_too_few_rows_is_refused():
    X, y = data((50, 3))
    for name in ("SMOTE", "ADASYN", "borderline-1"):
        with pytest.raises(ValueError, match="rows in a class to over-sample, but got 3 in class 1"):
            SAMPLERS[name].stream(X + y[:, None] * 0, y, 8)
    with pytest.raises(ValueError, match="expected at least 2 rows"):
        SAMPLERS["ROSE"].stream(X[:51], torch.arange(51) // 50, 8)
    with pytest.raises(ValueError, match="expected more than m_neighbors=99 rows in X"):
        imbloss.BorderlineSMOTE(m_neighbors=99).stream(X, y, 8)
    with pytest.raises(RuntimeError, match="expected neighbours of other classes"):
        imbloss.ADASYN(n_neighbors=2).stream(X + 1000 * y[:, None], y, 8)


def test_states_of_other_streams_are_refused():
    X, y = data()
    stream = SAMPLERS["SMOTE"].stream(X, y, 8)
    for state, message in (
        ({}, "expected state_dict of a stream"),
        (SAMPLERS["SMOTE"].stream(X, y, 9).state_dict(), "batch_size 8, but got 9"),
        (SAMPLERS["SMOTE"].stream(X[:-1], y[:-1], 8).state_dict(), "rows 240, but got 239"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.load_state_dict(state)


# ---- memory ------------------------------------------------------------------------------------------------------
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("every", stream_bench.EVERY)
def test_memory_stays_far_below_the_file(every, tmp_path):
    path = str(tmp_path / "rows")
    stream_bench.write(path, 2**28, sparse=True)
    command = [sys.executable, "-m", "benchmarks.stream", path, "12", str(every)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)
    assert found["file"] == 2**28 and found["batches"] == 12
    assert found["resident"] < 2**28 / 2  # at the peak, pages of the file included
