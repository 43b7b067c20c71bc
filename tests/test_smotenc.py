"""SMOTE-NC beyond the table of samplers: imbalanced-learn's rows and distribution, kinds of data, memory."""

import math

import numpy as np
import pytest
import torch

import imbloss
from benchmarks.measure import peak_of_call
from imbloss.sampling import nominal


def mixed(n=(300, 80, 50), numeric=2, categories=(4, 7), seed=0):
    """Float64 array whose categorical columns are the last, and labels."""
    draws = np.random.RandomState(seed)
    y = draws.permutation(np.repeat(np.arange(len(n)), n))
    numbers = draws.randn(len(y), numeric) * np.arange(1, numeric + 1) + y[:, None]
    codes = [(draws.randint(count, size=len(y)) * draws.rand(len(y))).astype(int) for count in categories]
    return np.column_stack([numbers, *codes]), y


def theirs(*args, **keywords):
    return pytest.importorskip("imblearn.over_sampling").SMOTENC(*args, **keywords)


@pytest.mark.parametrize("k", [1, 5, 8])
@pytest.mark.parametrize("weight_is_zero", [False, True], ids=["", "no spread"])
def test_a_numpy_state_gives_imbalanced_learns_rows(k, weight_is_zero):
    X, y = mixed(numeric=3 if weight_is_zero else 2)
    columns = [3, 4] if weight_is_zero else [2, 3]
    if weight_is_zero:
        X[:, :2] = 5.0  # most columns: the median is that of constants
    ours = imbloss.SMOTENC(columns, random_state=np.random.RandomState(3), k_neighbors=k)
    other = theirs(columns, random_state=np.random.RandomState(3), k_neighbors=k)
    got, expected = ours.fit_resample(X, y), other.fit_resample(X, y)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-12, atol=1e-12)
    assert (got[1] == expected[1]).all()
    assert ours.median_std_ == pytest.approx({int(label): value for label, value in other.median_std_.items()})


def test_the_face_gives_them_too():
    face = pytest.importorskip("imbloss.sampling.imblearn")
    X, y = mixed()
    got = face.SMOTENC([2, 3], random_state=np.random.RandomState(3)).fit_resample(X, y)
    expected = theirs([2, 3], random_state=np.random.RandomState(3)).fit_resample(X, y)
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


def fits(ours, other, columns) -> list[bool]:
    """By column, whether both have one distribution, at a level of 1e-4: chi-square of categories, else KS."""
    stats = pytest.importorskip("scipy.stats")
    held = []
    for j in range(ours.shape[1]):
        if j in columns:
            values = np.unique(np.concatenate([ours[:, j], other[:, j]]))
            table = np.array([[(part[:, j] == value).sum() for value in values] for part in (ours, other)])
            held.append(stats.chi2_contingency(table).pvalue > 1e-4)
        else:
            held.append(stats.ks_2samp(ours[:, j], other[:, j]).pvalue > 1e-4)
    return held


def test_new_rows_have_imbalanced_learns_distribution():
    """Twenty thousand of each, from generators that have nothing in common."""
    X, y = mixed((20060, 60), numeric=3, categories=(3, 6, 12))
    columns = [3, 4, 5]
    new = [
        sampler.fit_resample(X, y)[0][len(X) :]
        for sampler in (imbloss.SMOTENC(columns, random_state=0), theirs(columns, random_state=0))
    ]
    assert fits(*new, columns) == [True] * 6
    drawn = imbloss.SMOTENC(columns, random_state=0, k_neighbors=4).fit_resample(X, y)[0][len(X) :]
    assert not all(fits(drawn, new[1], columns)[3:])  # the test can fail


def test_ties_are_drawn_uniformly():
    """Two neighbours of different categories: each wins half of the time."""
    X = torch.tensor([[0.0, 0], [1, 1], [2, 2], [0, 3]])
    y = torch.tensor([1, 1, 1, 0]).repeat_interleave(torch.tensor([1, 1, 1, 30003]))
    X_new, _ = imbloss.SMOTENC([1], k_neighbors=2, random_state=0).fit_resample(X[torch.arange(len(y)).clamp(max=3)], y)
    counts = X_new[len(y) :, 1].long().bincount()
    assert len(counts) == 3 and ((counts - 10000).abs() < 4.5 * math.sqrt(30000 * 2 / 9)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [False, True])
def test_one_hot_rows_and_tiles_of_mismatches_find_the_same(monkeypatch, dtype, grid):
    """On a grid most distances are equal, and the lower index decides."""
    X, _ = mixed((700,), categories=(4, 40))
    x, values = torch.tensor(X[:, :2], dtype=dtype), torch.tensor(X[:, 2:]).long()
    x, weight = (x.round(), 2.0) if grid else (x, 1.7)
    which = torch.arange(0, 700, 3)
    by_one_hot = nominal.mixed_neighbours(x, values, weight, which, 6)
    monkeypatch.setattr(nominal, "WIDEST", 0)
    monkeypatch.setattr(nominal, "by_mismatches", recorded := Recorded(nominal.by_mismatches))
    assert torch.equal(nominal.mixed_neighbours(x, values, weight, which, 6), by_one_hot) and recorded.calls == 1


class Recorded:
    calls = 0

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        self.calls += 1
        return self.function(*args)


def test_an_object_searches_instead():
    from sklearn.neighbors import NearestNeighbors

    X, y = mixed()
    got = imbloss.SMOTENC([2, 3], random_state=0, k_neighbors=NearestNeighbors(n_neighbors=6)).fit_resample(X, y)
    expected = imbloss.SMOTENC([2, 3], random_state=0).fit_resample(X, y)
    assert (got[0] == expected[0]).all()


def test_many_categories_are_never_one_hot(monkeypatch):
    """2,000 of a class of 2,000: its one-hot rows would be as many columns."""
    X, y = mixed((2300, 2000), categories=(3,))
    X = np.column_stack([X, np.arange(len(X))])
    monkeypatch.setattr(nominal, "by_mismatches", recorded := Recorded(nominal.by_mismatches))
    X_new, _ = imbloss.SMOTENC([2, 3], random_state=0).fit_resample(X, y)
    assert recorded.calls == 1 and set(X_new[len(X) :, 3]) <= set(X[y == 1, 3])


def test_memory_for_forty_thousand_rows():
    """5 numeric columns, 5 of 40 categories. Of every new row's neighbours in one-hot columns it would be 3.3 GB."""
    X, y = mixed((36000, 4000), numeric=5, categories=(1,))
    codes = torch.randint(40, (len(y), 5))
    X = torch.cat([torch.from_numpy(X[:, :5]).float(), codes], dim=1)
    y = torch.from_numpy(y)
    sampler = imbloss.SMOTENC(range(5, 10), random_state=0)
    assert peak_of_call(lambda: sampler.fit_resample(X, y)) < 128 * 2**20


# ---- kinds of data -----------------------------------------------------------------------------------------------
def frame():
    pandas = pytest.importorskip("pandas")
    X, y = mixed((60, 20), numeric=3)
    columns = {
        "f": X[:, 0].astype("float32"),
        "category": pandas.Categorical.from_codes(X[:, 3].astype(int), list("dcbax")),
        "object": pandas.Series([("one", 2, None.__class__)[int(v) % 3] for v in X[:, 4]], dtype=object),
        "i": (10 * X[:, 1]).astype("int16"),
        "string": pandas.Series(np.array(list("gfedcba"))[X[:, 4].astype(int)], dtype="string"),
        "bool": X[:, 3] > 1,
        "whole": pandas.array(X[:, 2].astype(int), dtype="Int64"),
    }
    return pandas.DataFrame(columns).set_index(pandas.Index(range(100, 180))), pandas.Series(y, name="label")


def test_a_frame_keeps_its_columns_dtypes_and_old_rows():
    X, y = frame()
    before = X.copy()
    sampler = imbloss.SMOTENC("auto", random_state=0)
    X_new, y_new = sampler.fit_resample(X, y)
    assert (X_new.dtypes == X.dtypes).all() and list(X_new.columns) == list(X.columns)
    assert (X_new.iloc[: len(X)].reset_index(drop=True) == X.reset_index(drop=True)).all(axis=None)
    assert before.equals(X) and list(X_new.index) == list(range(120)) and len(y_new) == 120
    for name in ("category", "object", "string", "bool"):
        assert set(X_new[name][len(X) :]) <= set(X[name][(y == 1).to_numpy()])
    parent, neighbour, gap = sampler.sample_info_
    expected = X["i"].to_numpy()[parent] + gap * (X["i"].to_numpy()[neighbour] - X["i"].to_numpy()[parent])
    assert (X_new["i"][len(X) :] == expected.round()).all()


def test_columns_are_named_in_any_way():
    X, y = frame()
    expected = imbloss.SMOTENC("auto", random_state=0).fit_resample(X, y)[0]
    mask = [False, True, True, False, True, True, False]
    names = ["category", "string", "bool", "object"]
    for features in (
        names,
        mask,
        np.array(mask),
        torch.tensor(mask),
        [1, 2, 4, -2],
        np.array([5, 4, 2, 1]),
        (1, 2, 4, 5),
    ):
        assert imbloss.SMOTENC(features, random_state=0).fit_resample(X, y)[0].equals(expected)


def test_an_array_of_objects_is_resampled_as_the_frame():
    X, y = frame()
    expected = imbloss.SMOTENC("auto", random_state=0).fit_resample(X.drop(columns="i"), y)[0]
    got, _ = imbloss.SMOTENC([1, 2, 3, 4], random_state=0).fit_resample(X.drop(columns="i").to_numpy(dtype=object), y)
    assert got.dtype == object
    for place in (1, 2, 3, 4):
        assert list(got[:, place]) == list(expected.iloc[:, place])
    np.testing.assert_allclose(got[:, 0].astype(float), expected["f"].astype(float), rtol=1e-6)


def test_numbers_as_categories_come_back_to_the_bit():
    """What no interpolation and no dtype between could keep."""
    _, y = mixed((30, 12))
    large = torch.tensor([2**53 + 1, 2**53 + 2])[torch.arange(42) % 2]
    X = torch.stack([torch.arange(42), large], dim=1)
    X_new, _ = imbloss.SMOTENC([1], random_state=0).fit_resample(X, torch.from_numpy(y))
    assert X_new.dtype == torch.int64 and set(X_new[:, 1].tolist()) == {2**53 + 1, 2**53 + 2}


@pytest.mark.parametrize(
    "change, features, kind, message",
    [
        ({}, ["f", "absent"], ValueError, "of columns that X has once, but got 'absent', which it has 0 times"),
        ({}, ["category"], TypeError, "column 'object' of X to be of numbers or in categorical_features"),
        ({"object": None}, "auto", ValueError, "column 'object' of X without missing values, but got None in row 0"),
        ({"string": math.nan}, "auto", ValueError, "'string' of X without missing values, but got <NA> in row 0"),
        ({"f": math.nan}, "auto", ValueError, "expected X to be finite, but got nan in row 0"),
        ({"object": [1]}, "auto", TypeError, "column 'object' of X of hashable values, but got: unhashable"),
    ],
)  # fmt: skip
def test_frames_that_cannot_be_resampled(change, features, kind, message):
    X, y = frame()
    for name, value in change.items():
        X[name] = X[name].astype(X[name].dtype)
        X.at[X.index[0], name] = value
    with pytest.raises(kind, match=message):
        imbloss.SMOTENC(features).fit_resample(X, y)


def test_names_that_two_columns_have_and_frames_of_one_kind():
    X, y = frame()
    twice = X.set_axis(["a", "b", "b", "c", "d", "e", "f"], axis=1)
    with pytest.raises(ValueError, match="columns that X has once, but got 'b', which it has 2 times"):
        imbloss.SMOTENC(["b"]).fit_resample(twice, y)
    assert list(imbloss.SMOTENC([1, 2, 4, 5]).fit_resample(twice, y)[0].columns) == list(twice.columns)
    with pytest.raises(ValueError, match="at least one column, but got 'auto': use SMOTE"):
        imbloss.SMOTENC("auto").fit_resample(X[["f", "i"]], y)
    with pytest.raises(ValueError, match="to leave a numeric column, but got all 2: use RandomOverSampler"):
        imbloss.SMOTENC("auto").fit_resample(X[["category", "bool"]], y)
    with pytest.raises(TypeError, match=r"expected column 'f' of X to be of numbers .*, but got datetime64"):
        imbloss.SMOTENC(["category", "object", "string", "bool"]).fit_resample(X.astype({"f": "datetime64[s]"}), y)


def test_a_missing_value_in_an_array_of_objects():
    X, y = frame()
    rows = X[["f", "object"]].to_numpy(dtype=object)
    for hole in (None, math.nan):
        rows[7, 1] = hole
        with pytest.raises(ValueError, match=f"column 1 of X without missing values, but got {hole} in row 7"):
            imbloss.SMOTENC([1]).fit_resample(rows, y)
