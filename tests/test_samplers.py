"""Every sampler of the table: parity with its reference, kinds and dtypes, strategies, statistics, bad input."""

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from samplers import SAMPLERS

import imbloss
from imbloss import sampling
from imbloss.sampling import strategy

CASES = [(sampler, sample) for sampler in SAMPLERS for sample in sampler.samples]
MAKING = [sampler for sampler in SAMPLERS if sampler.makes]
each = pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
each_making = pytest.mark.parametrize("sampler", MAKING, ids=str)


def data(dtype=torch.float64, n=(60, 30, 21), d=4, shape=None, seed=0):
    """Three overlapping classes in no order."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.tensor(n))[torch.randperm(sum(n), generator=generator)]
    X = torch.randn(len(y), d, generator=generator, dtype=torch.float64) + 0.8 * y.unsqueeze(1)
    return (X if shape is None else X.view(len(y), *shape)).to(dtype), y


def test_every_public_sampler_is_in_the_table():
    classes = [name for name in sampling.__all__ if inspect.isclass(getattr(sampling, name))]
    public = {name for name in classes if issubclass(getattr(sampling, name), sampling.base.Sampler)}
    assert public == {sampler.name for sampler in SAMPLERS}
    assert set(sampling.__all__) <= set(imbloss.__all__)


@pytest.mark.parametrize("sampler, sample", CASES, ids=lambda case: str(case))
def test_equals_its_reference(sampler, sample):
    """With numpy's draws, which both make in the same order."""
    X, y = data()
    made = sampler.make(sample)
    if sampler.draws:
        made.random_state = np.random.RandomState(0)
    if isinstance(made, (imbloss.SMOTEENN, imbloss.SMOTETomek)):
        made.smote = None
    got, labels = made.fit_resample(X, y)
    expected, expected_labels = sampler.reference(X, y, sampler.samples[sample], made)
    assert torch.equal(labels, expected_labels)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@each
def test_counts_are_the_strategys(sampler):
    X, y = data()
    made = sampler.make()
    _, labels = made.fit_resample(X, y)
    before, after = y.bincount(), labels.bincount(minlength=3)
    assert list(made.sampling_strategy_) == sorted(made.sampling_strategy_)
    if sampler.makes and sampler.exact:
        assert after.tolist() == [60, 60, 60] and made.sampling_strategy_ == {1: 30, 2: 39}
    elif sampler.exact:
        assert after.tolist() == [21, 21, 21] and made.sampling_strategy_ == {0: 21, 1: 21}
    elif sampler.chooses:
        assert (after <= before).all() and after[2] == before[2] and after[0] < before[0]


@each_making
def test_the_old_rows_come_first_unchanged(sampler):
    if sampler.name in ("SMOTEENN", "SMOTETomek"):
        pytest.skip("these leave out some of them")
    X, y = data()
    X_new, y_new = sampler.make().fit_resample(X, y)
    assert torch.equal(X_new[: len(X)], X) and torch.equal(y_new[: len(y)], y)
    assert (y_new[len(y) :].diff() >= 0).all()


@each
def test_rows_chosen_are_rows_of_x(sampler):
    X, y = data()
    made = sampler.make()
    X_new, y_new = made.fit_resample(X, y)
    if sampler.chooses or sampler.name == "RandomOverSampler":
        assert torch.equal(X_new, X[made.sample_indices_]) and torch.equal(y_new, y[made.sample_indices_])


@pytest.mark.parametrize("name", ["SMOTE", "BorderlineSMOTE", "ADASYN", "SMOTEENN", "SMOTETomek"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sample_info_makes_the_new_rows(name, dtype):
    X, y = data(dtype)
    made = getattr(imbloss, name)(random_state=1)
    X_new, y_new = made.fit_resample(X, y)
    parent, neighbour, gap = made.sample_info_
    new = X_new[-len(parent) :] if name not in ("SMOTEENN", "SMOTETomek") else X_new[made.sample_indices_ >= len(X)]
    labels = y_new[-len(parent) :] if len(new) == len(X_new) else None
    wide = X.double() if dtype == torch.float64 else X.float()
    expected = wide[parent] + gap.unsqueeze(1) * (wide[neighbour] - wide[parent])
    torch.testing.assert_close(new, expected.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(y[parent], y[neighbour]) and (parent != neighbour).all()
    assert gap.min() >= 0 and gap.max() < 1
    assert labels is None or torch.equal(labels, y[parent])


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dtype_shape_and_inputs_are_kept(sampler, dtype):
    X, y = data(dtype, d=12, shape=(3, 2, 2))
    X_before, y_before = X.clone(), y.clone()
    X_new, y_new = sampler.make().fit_resample(X, y)
    assert X_new.dtype == dtype and X_new.shape == (len(y_new), 3, 2, 2) and y_new.dtype == torch.int64
    assert torch.equal(X, X_before) and torch.equal(y, y_before)
    flat, _ = sampler.make().fit_resample(X.flatten(1), y)
    assert torch.equal(X_new.flatten(1), flat)


@each
def test_the_same_seed_gives_the_same_rows(sampler):
    X, y = data()
    first, again = sampler.make(), sampler.make()
    for got, expected in zip(first.fit_resample(X, y), again.fit_resample(X, y), strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(first.fit_resample(X, y)[0], first.fit_resample(X, y)[0])
    if sampler.draws:
        by_generator = sampler.make(random_state=torch.Generator().manual_seed(0)).fit_resample(X, y)[0]
        assert torch.equal(by_generator, first.fit_resample(X, y)[0])
        torch.manual_seed(3)
        one = sampler.make(random_state=None).fit_resample(X, y)[0]
        torch.manual_seed(3)
        assert torch.equal(one, sampler.make(random_state=None).fit_resample(X, y)[0])


@each
def test_strings_as_labels_and_integers_as_values(sampler):
    X, y = data()
    names = np.array(["common", "rare", "scarce"])[y.numpy()]
    X_new, y_new = sampler.make().fit_resample((10 * X).long().numpy(), names)
    assert X_new.dtype == np.int64 and set(y_new) == set(names) and y_new.dtype == names.dtype
    for labels in (y.to(torch.uint8), y.double(), 7 * y - 1, 10**12 * y):
        X_same, y_same = sampler.make().fit_resample(X, labels)
        assert y_same.dtype == labels.dtype
        assert torch.equal(X_same, sampler.make().fit_resample(X, y)[0])


@each
def test_numpy_and_pandas_come_back_as_they_came(sampler):
    pandas = pytest.importorskip("pandas")
    X, y = data()
    expected, labels = sampler.make().fit_resample(X, y)
    made = sampler.make()
    X_new, y_new = made.fit_resample(X.numpy(), y.numpy())
    assert isinstance(X_new, np.ndarray) and (X_new == expected.numpy()).all() and (y_new == labels.numpy()).all()
    for name in ("sample_indices_", "sample_info_"):
        found = getattr(made, name, None)
        assert found is None or all(isinstance(part, np.ndarray) for part in (found if name[-2] == "o" else [found]))
    frame = pandas.DataFrame(X.numpy(), columns=list("abcd"), index=range(100, 100 + len(X)))
    frame["b"] = frame["b"].astype("float32")
    series = pandas.Series(y.numpy(), name="label", index=frame.index)
    X_new, y_new = sampler.make().fit_resample(frame, series)
    assert list(X_new.columns) == list("abcd") and (X_new.dtypes == frame.dtypes).all()
    assert y_new.name == "label" and y_new.dtype == series.dtype and (X_new.index == y_new.index).all()
    if sampler.chooses:
        assert (frame.loc[X_new.index] == X_new).all(None)


@each
def test_on_the_meta_of_being_an_object(sampler):
    made = sampler.make()
    assert repr(made).startswith(f"{sampler.name}(sampling_strategy=")
    X, y = data()
    again = pickle.loads(pickle.dumps(copy.deepcopy(made)))
    assert torch.equal(again.fit_resample(X, y)[0], made.fit_resample(X, y)[0])


@pytest.mark.parametrize("sampler, error", [(s, e) for s in SAMPLERS for e in s.errors], ids=lambda case: str(case))
def test_errors(sampler, error):
    keywords, kind, message = sampler.errors[error]
    with pytest.raises(kind, match=message):
        sampler.make(**keywords).fit_resample(*data())


@each
def test_bad_data(sampler):
    X, y = data()
    bad = [
        (X, y[:-1], ValueError, "expected y of 111 labels, one a row of X, but got 110"),
        (X, torch.zeros(len(X)), ValueError, "expected y of at least two classes, but got one class"),
        (X[:0], y[:0], ValueError, "expected y of at least two classes"),
        (X, y.view(-1, 1), ValueError, r"expected y of shape \(n,\), but got \(111, 1\)"),
        (X, torch.where(y == 0, math.nan, 1.0), ValueError, "expected y to be finite"),
        (X[:, 0], y, ValueError, r"expected X of shape \(n, d\) or \(n, ...\), but got \(111,\)"),
        (X.to(torch.complex64), y, TypeError, "expected X of real numbers"),
        ("rows", y, TypeError, "expected X to be a tensor, a numpy array or a pandas frame"),
        (X, y + 0j, TypeError, "expected y of a real dtype"),
    ]
    if sampler.needs_values:
        bad.append((X[:, :0], y, ValueError, "expected X of at least one column"))
    for X_bad, y_bad, kind, message in bad:
        with pytest.raises(kind, match=message):
            sampler.make().fit_resample(X_bad, y_bad)
    with pytest.raises(ValueError, match=r"expected sampling_strategy in .*, but got 'balanced'"):
        sampler.make(sampling_strategy="balanced").fit_resample(X, y)
    holes = X.clone()
    holes[3, 1] = math.nan
    if sampler.needs_values:
        with pytest.raises(ValueError, match="expected X to be finite, but got nan in row 3"):
            sampler.make().fit_resample(holes, y)
    else:
        assert sampler.make().fit_resample(holes, y)[0].shape[1] == 4


@each
def test_random_states_that_are_none(sampler):
    if not sampler.draws:
        pytest.skip("draws nothing")
    for state in ("0", 1.5, True):
        with pytest.raises(TypeError, match="expected random_state to be None, an int"):
            sampler.make(random_state=state).fit_resample(*data())


@pytest.mark.parametrize("sampler", [s for s in MAKING if s.name != "RandomOverSampler"], ids=str)
def test_a_class_of_one_row(sampler):
    X, y = data(n=(60, 30, 1))
    if sampler.name == "BorderlineSMOTE":
        assert sampler.make(m_neighbors=5).fit_resample(X, y)[1].bincount()[2] == 1  # noise, not in danger
    else:
        with pytest.raises(ValueError, match="but got 1 in class 2"):
            sampler.make().fit_resample(X, y)


def test_adasyn_among_its_own():
    X, y = data()
    with pytest.raises(RuntimeError, match="class 1 has none: use SMOTE"):
        imbloss.ADASYN().fit_resample(X + 100 * y.unsqueeze(1), y)
    with pytest.raises(ValueError, match="expected enough new rows to share out, but got 1 for class 1"):
        imbloss.ADASYN(sampling_strategy={1: 31}).fit_resample(X, y)


def test_near_miss_3_warns_of_too_few():
    X, y = data()
    with pytest.warns(UserWarning, match="found .* rows of class .* near the smallest class, and keeps them all"):
        imbloss.NearMiss(version=3, n_neighbors_ver3=1).fit_resample(X, y)


# ---- strategies --------------------------------------------------------------------------------------------------
COUNTS = {"a": 10, "b": 4, "c": 7}
STRATEGIES = {
    ("auto", strategy.OVER): {"b": 6, "c": 3},
    ("all", strategy.OVER): {"a": 0, "b": 6, "c": 3},
    ("minority", strategy.OVER): {"b": 6},
    ("not minority", strategy.OVER): {"a": 0, "c": 3},
    ("not majority", strategy.OVER): {"b": 6, "c": 3},
    ("auto", strategy.UNDER): {"a": 4, "c": 4},
    ("majority", strategy.UNDER): {"a": 4},
    ("not majority", strategy.UNDER): {"b": 4, "c": 4},
    ("all", strategy.CLEAN): {"a": 4, "b": 4, "c": 4},
}


@pytest.mark.parametrize("name, kind", STRATEGIES)
def test_strategies_by_name(name, kind):
    assert strategy.resolve(name, COUNTS, kind, None) == STRATEGIES[name, kind]
    imblearn = pytest.importorskip("imblearn.utils")
    kinds = {strategy.OVER: "over-sampling", strategy.UNDER: "under-sampling", strategy.CLEAN: "clean-sampling"}
    y = np.repeat(list(COUNTS), list(COUNTS.values()))
    assert STRATEGIES[name, kind] == imblearn.check_sampling_strategy(name, y, kinds[kind])


def test_strategies_by_number_list_and_function():
    two = {0: 10, 1: 4}
    assert strategy.resolve(0.8, two, strategy.OVER, None) == {1: 4}
    assert strategy.resolve(0.5, two, strategy.UNDER, None) == {0: 8}
    assert strategy.resolve({"c": 9, "b": 4}, COUNTS, strategy.OVER, None) == {"b": 0, "c": 2}
    assert strategy.resolve({"a": 3}, COUNTS, strategy.UNDER, None) == {"a": 3}
    assert list(strategy.resolve(["c", "a"], COUNTS, strategy.CLEAN, None)) == ["a", "c"]
    assert strategy.resolve(lambda y: {"b": len(y)}, COUNTS, strategy.OVER, "x" * 21) == {"b": 17}


@pytest.mark.parametrize(
    "given, kind, error, message",
    [
        ("minority", strategy.UNDER, ValueError, "in .* for under-sampling, but got 'minority'"),
        ("majority", strategy.OVER, ValueError, "in .* for over-sampling, but got 'majority'"),
        ({"d": 5}, strategy.OVER, ValueError, "of classes in y"),
        ({"a": 9}, strategy.OVER, ValueError, "at least the 10 rows that class 'a' has, but got 9"),
        ({"a": 11}, strategy.UNDER, ValueError, "0 to the 10 rows that class 'a' has, but got 11"),
        ({"a": 1.5}, strategy.UNDER, TypeError, "whole numbers of rows, but got 1.5"),
        (["a"], strategy.OVER, ValueError, "to be a dict, a name or a number for over-sampling"),
        (0.5, strategy.OVER, ValueError, "to be a dict or a name for 3 classes, but got 0.5"),
        (None, strategy.OVER, TypeError, "to be a name, a number, a dict, a list or a function, but got NoneType"),
        (True, strategy.OVER, TypeError, "but got bool"),
    ],
)
def test_strategies_that_do_not_fit(given, kind, error, message):
    with pytest.raises(error, match=message):
        strategy.resolve(given, COUNTS, kind, None)


@pytest.mark.parametrize(
    "share, kind, message",
    [
        (1.2, strategy.OVER, r"in \(0, 1\]"), (0.0, strategy.UNDER, r"in \(0, 1\]"),
        (0.3, strategy.OVER, "of more than 0.4, the share that class 1 has already"),
        (0.3, strategy.UNDER, "of at least 0.4, the share that class 1 has already"),
    ],
)  # fmt: skip
def test_shares_that_do_not_fit(share, kind, message):
    with pytest.raises(ValueError, match=message):
        strategy.resolve(share, {0: 10, 1: 4}, kind, None)


# ---- neighbours from elsewhere -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name, parameter, own",
    [
        ("SMOTE", "k_neighbors", 1), ("BorderlineSMOTE", "m_neighbors", 1), ("ADASYN", "n_neighbors", 1),
        ("EditedNearestNeighbours", "n_neighbors", 1), ("NearMiss", "n_neighbors", 0),
    ],
)  # fmt: skip
def test_an_object_searches_instead(name, parameter, own):
    """scikit-learn's counts a row as its own first neighbour, as imbalanced-learn has it."""
    from sklearn.neighbors import NearestNeighbors

    X, y = data(n=(60, 25))
    options = {"random_state": 0} if "SMOTE" in name or name == "ADASYN" else {}
    given = NearestNeighbors(n_neighbors=5 + own)
    got = getattr(imbloss, name)(**{parameter: given}, **options).fit_resample(X, y)
    expected = getattr(imbloss, name)(**{parameter: 5}, **options).fit_resample(X, y)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
    assert not hasattr(given, "n_samples_fit_")  # a copy was fitted


def test_only_rows_that_were_drawn_are_searched(monkeypatch):
    X, y = data(n=(400, 300))
    asked = []
    nearest = sampling.base.nearest
    monkeypatch.setattr(sampling.base, "nearest", lambda x, k, q=None, e=None: asked.append(q) or nearest(x, k, q, e))
    made = imbloss.SMOTE(sampling_strategy={1: 320}, random_state=0)
    made.fit_resample(X, y)
    (queries,) = asked
    assert torch.equal(queries, X[made.sample_info_.parent.unique()])


# ---- statistics --------------------------------------------------------------------------------------------------
def chi_square_fits(counts: np.ndarray) -> bool:
    """Whether counts are uniform: the statistic within 4.5 standard deviations of its mean."""
    mean = counts.sum() / counts.size
    statistic = ((counts - mean) ** 2 / mean).sum()
    return abs(statistic - (counts.size - 1)) < 4.5 * math.sqrt(2 * (counts.size - 1))


def test_pairs_of_row_and_neighbour_are_drawn_uniformly():
    X, y = data(n=(40030, 30))
    made = imbloss.SMOTE(random_state=0)
    made.fit_resample(X, y)
    parent, neighbour, gap = (part.numpy() for part in made.sample_info_)
    pairs = np.unique(parent * len(X) + neighbour, return_counts=True)[1]
    assert len(pairs) == 30 * 5 and chi_square_fits(pairs)
    assert chi_square_fits(np.histogram(gap, bins=50, range=(0, 1))[0])
    assert not chi_square_fits(np.histogram(gap**1.1, bins=50, range=(0, 1))[0])  # the test can fail


def test_new_rows_lie_between_two_of_their_class():
    X, y = data()
    X_new, _ = imbloss.SMOTE(random_state=0, sampling_strategy="minority").fit_resample(X, y)
    own = X[y == 2]
    apart = torch.cdist(own, own)
    for row in X_new[len(X) :]:
        to = torch.cdist(row.unsqueeze(0), own)
        assert ((to.T + to - apart).abs() < 1e-9).fill_diagonal_(False).any()


def test_roses_covariance_is_the_smoothed_ones():
    """Of rows x_i + h sigma e: that of the class (ddof 0) plus h^2 times its variances; 4.5 standard errors."""
    X, y = data(n=(80040, 40), d=3)
    X_new, _ = imbloss.ROSE(random_state=0, shrink=2.0).fit_resample(X, y)
    new, own = X_new[len(X) :], X[y == 1]
    width = 2.0 * (4 / (5 * 40)) ** (1 / 7)
    expected = torch.cov(own.T, correction=0) + torch.diag(width**2 * own.var(0))
    error = (torch.cov(new.T) - expected).abs()
    variances = expected.diagonal()
    standard = ((variances.unsqueeze(0) * variances.unsqueeze(1) + expected**2) / len(new)).sqrt()
    assert (error < 4.5 * standard).all()
    assert ((new.mean(0) - own.mean(0)).abs() < 4.5 * (variances / len(new)).sqrt()).all()


def test_random_samplers_draw_uniformly():
    X, y = data(n=(40050, 50))
    made = imbloss.RandomOverSampler(random_state=0)
    made.fit_resample(X, y)
    assert chi_square_fits(made.sample_info_.parent.unique(return_counts=True)[1].numpy())
    kept = torch.zeros(40)
    X, y = data(n=(40, 10))
    for seed in range(400):
        made = imbloss.RandomUnderSampler(random_state=seed)
        made.fit_resample(X, y)
        chosen = made.sample_indices_[:10]
        assert len(chosen.unique()) == 10
        kept += (y == 0).nonzero().squeeze(1).unsqueeze(1).eq(chosen).any(1)
    assert (kept - 100).abs().max() < 4.5 * math.sqrt(400 * 0.25 * 0.75)


def test_all_rows_alike_stay_where_they_are():
    X, y = torch.ones(30, 3), torch.tensor([0] * 20 + [1] * 10)
    for made in (imbloss.SMOTE(), imbloss.ROSE(), imbloss.ADASYN(), imbloss.SMOTETomek()):
        assert (made.fit_resample(X, y)[0] == 1).all()


def test_plain_pytorch_makes_the_same_rows():
    X, y = data(torch.float32)
    got, labels = imbloss.SMOTE(random_state=0).fit_resample(X, y)
    with imbloss.testing.backend("reference"):
        expected, expected_labels = imbloss.SMOTE(random_state=0).fit_resample(X, y)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(labels, expected_labels)
