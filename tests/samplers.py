"""The table: one row a public sampler. The generic tests of test_samplers.py run every row."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

import imbloss
from imbloss import reference

Keywords = dict[str, object]


@dataclass(frozen=True)
class Sampler:
    name: str
    # name -> keywords
    samples: dict[str, Keywords]
    # (X, y, keywords, a fitted sampler) -> the result by the reference, of the draws that numpy's RandomState(0) makes
    reference: Callable[..., tuple[Tensor, Tensor]] = field(repr=False)
    # name -> (keywords, exception, its message)
    errors: dict[str, tuple[Keywords, type[Exception], str]] = field(default_factory=dict, repr=False)
    exact: bool = True  # whether counts are exactly those of the strategy, where it has any
    makes: bool = True  # whether there are new rows
    chooses: bool = False  # whether the result is rows of X
    needs_values: bool = True  # whether X has to be finite
    needed: Keywords = field(default_factory=dict, repr=False)  # parameters without a default

    def make(self, sample: str | None = None, **keywords):
        keywords = {**self.needed, **(self.samples[sample] if sample else {}), **keywords}
        if self.draws:
            keywords.setdefault("random_state", 0)
        return getattr(imbloss, self.name)(**keywords)

    @property
    def draws(self) -> bool:
        return "random_state" in inspect.signature(getattr(imbloss, self.name)).parameters

    def __str__(self) -> str:
        return self.name


def tail(y: Tensor) -> dict[int, int]:
    """Class -> rows that "auto" adds."""
    counts = y.bincount().tolist()
    return {code: max(counts) - count for code, count in enumerate(counts) if code != counts.index(max(counts))}


def state() -> np.random.RandomState:
    return np.random.RandomState(0)


def tensor(values) -> Tensor:
    return torch.from_numpy(np.asarray(values))


def grown(X: Tensor, y: Tensor, new_of: Callable[[int, int], Tensor]) -> tuple[Tensor, Tensor]:  # noqa: N803
    parts, labels = [X.double()], [y]
    for code, count in tail(y).items():
        new = new_of(code, count) if count else X[:0].double()
        parts.append(new)
        labels.append(torch.full((len(new),), code))
    return torch.cat(parts), torch.cat(labels)


def smote(X, y, keywords, _=None, draws=None):  # noqa: N803
    draws, k = draws or state(), keywords.get("k_neighbors", 5)

    def new(code, count):
        own = X[y == code]
        drawn = tensor(draws.randint(0, len(own) * k, count))
        return reference.smote(own, drawn, tensor(draws.uniform(size=count)), k)

    return grown(X, y, new)


def first_of_permuted(draws: np.random.RandomState) -> Callable[[Tensor], Tensor]:
    """How imbalanced-learn chooses one of each row's entries that are true."""

    def chosen(mask: Tensor) -> Tensor:
        pairs = draws.permutation(mask.nonzero().numpy())
        first = dict(pairs[::-1].tolist())
        return torch.tensor([first[row] for row in range(len(mask))])

    return chosen


def smotenc(X, y, keywords, _=None):  # noqa: N803
    draws, k, nominal = state(), keywords.get("k_neighbors", 5), keywords.get("categorical_features", [1, 3])

    def new(code, count):
        own = X[y == code]
        drawn = tensor(draws.randint(0, len(own) * k, count))
        gap = tensor(draws.uniform(size=count))
        return reference.smotenc(own, nominal, drawn, gap, k, first_of_permuted(draws))

    return grown(X, y, new)


def borderline(X, y, keywords, _=None):  # noqa: N803
    draws, k, m = state(), keywords.get("k_neighbors", 5), keywords.get("m_neighbors", 10)

    def new(code, count):
        danger = reference.danger(X, y, code, m)
        if not len(danger):
            return X[:0].double()
        drawn = tensor(draws.randint(0, len(danger) * k, count))
        gap = tensor(draws.uniform(size=count))
        rows = danger[drawn // k]
        pool = (y == code).nonzero().squeeze(1) if keywords.get("kind") != "borderline-2" else torch.arange(len(y))
        place = torch.searchsorted(pool, rows)
        others = pool[reference.neighbours_in(X[pool], place, k).gather(1, (drawn % k).unsqueeze(1)).squeeze(1)]
        foreign = y[others] != code
        gap[foreign] *= tensor(draws.uniform(size=int(foreign.sum()))) / 2
        start = X[rows].double()
        return start + gap.unsqueeze(1) * (X[others].double() - start)

    return grown(X, y, new)


def adasyn(X, y, keywords, _=None):  # noqa: N803
    draws, k = state(), keywords.get("n_neighbors", 5)

    def new(code, count):
        per_row = reference.adasyn_counts(X, y, code, count, k)
        rows = torch.repeat_interleave(per_row)
        column = tensor(draws.randint(0, k, len(rows)))
        return reference.smote(X[y == code], rows * k + column, tensor(draws.uniform(size=len(rows))), k)

    return grown(X, y, new)


def random_over(X, y, keywords, _=None):  # noqa: N803
    draws, shrinkage = state(), keywords.get("shrinkage")

    def new(code, count):
        own = X[y == code]
        drawn = tensor(draws.choice(len(own), size=count))
        if shrinkage is None:
            return own[drawn].double()
        factor = shrinkage[code] if isinstance(shrinkage, dict) else shrinkage
        noise = tensor(draws.randn(count, X.shape[1]))
        return reference.rose(own, drawn, noise, factor * ((len(own) - 1) / len(own)) ** 0.5, len(X))

    return grown(X, y, new)


def rose(X, y, keywords, _=None):  # noqa: N803
    draws, keep = state(), keywords.get("keep_originals", True)
    rows = len(X) if keywords.get("bandwidth") == "dataset" else None

    def new(code, count):
        own = X[y == code]
        drawn = tensor(draws.choice(len(own), size=count))
        noise = tensor(draws.randn(count, X.shape[1]))
        return reference.rose(own, drawn, noise, keywords.get("shrink", 1.0), rows)

    if keep:
        return grown(X, y, new)
    counts = y.bincount().tolist()
    parts = [new(code, max(counts)) for code in range(len(counts))]
    return torch.cat(parts), torch.arange(len(counts)).repeat_interleave(max(counts))


def by_class(X, y, chosen):  # noqa: N803
    """Class after class: ``chosen(code)`` for all but the smallest, which stays whole."""
    counts = y.bincount()
    order = []
    for code in range(len(counts)):
        whole = code == int(counts.argmin())
        order.append((y == code).nonzero().squeeze(1) if whole else chosen(code, int(counts.min())))
    return X[torch.cat(order)], y[torch.cat(order)]


def random_under(X, y, keywords, _=None):  # noqa: N803
    draws = state()

    def chosen(code, count):
        own = (y == code).nonzero().squeeze(1)
        return own[tensor(draws.choice(len(own), size=count, replace=keywords.get("replacement", False)))]

    return by_class(X, y, chosen)


def tomek(X, y, keywords, _=None):  # noqa: N803
    cleaned = torch.ones_like(y, dtype=torch.bool)
    if keywords.get("sampling_strategy", "auto") != "all":
        cleaned = y != int(y.bincount().argmin())
    keep = ~(reference.tomek_links(X, y) & cleaned)
    return X[keep], y[keep]


def edited(X, y, keywords, _=None):  # noqa: N803
    keep = reference.edited(X, y, keywords.get("n_neighbors", 3), keywords.get("kind_sel", "all"))
    return by_class(X, y, lambda code, _: (keep & (y == code)).nonzero().squeeze(1))


def near_miss(X, y, keywords, _=None):  # noqa: N803
    options = keywords.get("n_neighbors", 3), keywords.get("version", 1), keywords.get("n_neighbors_ver3", 3)
    return by_class(X, y, lambda code, count: reference.near_miss(X, y, code, count, *options))


def smote_enn(X, y, keywords, _=None):  # noqa: N803
    X, y = smote(X, y, {})
    keep = reference.edited(X, y, 3)
    order = torch.cat([(keep & (y == code)).nonzero().squeeze(1) for code in range(int(y.max()) + 1)])
    return X[order], y[order]


def smote_tomek(X, y, keywords, _=None):  # noqa: N803
    X, y = smote(X, y, {})
    keep = ~reference.tomek_links(X, y)
    return X[keep], y[keep]


K_ERRORS = {
    "none": (0, ValueError, "expected {name} >= 1, but got 0"),
    "float": (2.5, TypeError, "expected {name} to be an int or to have fit and kneighbors, but got float 2.5"),
    "bool": (True, TypeError, "expected {name} to be an int or to have fit and kneighbors, but got bool True"),
}


def k_errors(name: str) -> dict[str, tuple[Keywords, type[Exception], str]]:
    return {f"{name} {k}": ({name: v}, kind, text.format(name=name)) for k, (v, kind, text) in K_ERRORS.items()}


SAMPLERS = [
    Sampler(
        "SMOTE", {"default": {}, "k 1": {"k_neighbors": 1}, "k 12": {"k_neighbors": 12}}, smote,
        {
            **k_errors("k_neighbors"),
            "too many": ({"k_neighbors": 400}, ValueError, "expected more than k_neighbors=400 rows in a class"),
        },
    ),
    Sampler(
        "BorderlineSMOTE",
        {"default": {}, "kind 2": {"kind": "borderline-2"}, "m": {"m_neighbors": 5, "k_neighbors": 3}}, borderline,
        {
            **k_errors("k_neighbors"), **k_errors("m_neighbors"),
            "kind": ({"kind": "svm"}, ValueError, "expected kind in .*, but got 'svm'"),
            "too many": ({"m_neighbors": 9999}, ValueError, "expected more than m_neighbors=9999 rows in X"),
        },
        exact=False,
    ),
    Sampler(
        "SMOTENC", {"default": {}, "k 1": {"k_neighbors": 1}, "one column": {"categorical_features": [2]}}, smotenc,
        {
            **k_errors("k_neighbors"),
            "too many": ({"k_neighbors": 400}, ValueError, "expected more than k_neighbors=400 rows in a class"),
            "none": ({"categorical_features": []}, ValueError, r"categorical_features of at least one column, .* \[\]"),
            "all": ({"categorical_features": [3, 1, 2, 0]}, ValueError, "to leave a numeric column, but got all 4"),
            "beyond": ({"categorical_features": [1, 4]}, ValueError, r"categorical_features in \[0, 4\).*, but got 4"),
            "below": ({"categorical_features": [-5]}, ValueError, r"categorical_features in \[0, 4\).*, but got -5"),
            "repeated": ({"categorical_features": [1, -3]}, ValueError, "without repeats, but got -3 twice"),
            "mask": ({"categorical_features": [True] * 3}, ValueError, "of 4 booleans, .* but got 3"),
            "mixed": ({"categorical_features": [1, True]}, TypeError, "or booleans alone, but got bool True"),
            "name": ({"categorical_features": ["a"]}, ValueError, "for X without column names, but got 'a'"),
            "auto": ({"categorical_features": "auto"}, ValueError, 'a pandas frame for categorical_features="auto"'),
            "word": ({"categorical_features": "a"}, ValueError, "categorical_features to be .*, but got 'a'"),
            "number": ({"categorical_features": 1}, TypeError, "categorical_features to be .*, but got int 1"),
            "float": ({"categorical_features": [1.0]}, TypeError, "of indices, .*, but got float 1.0"),
        },
        needed={"categorical_features": [1, 3]},
    ),
    Sampler(
        "ADASYN", {"default": {}, "k 3": {"n_neighbors": 3}}, adasyn,
        {
            **k_errors("n_neighbors"),
            "too many": ({"n_neighbors": 400}, ValueError, "expected more than n_neighbors=400 rows in a class"),
        },
        exact=False,
    ),
    Sampler(
        "ROSE",
        {
            "default": {}, "shrink": {"shrink": 0.3}, "new alone": {"keep_originals": False},
            "bandwidth": {"bandwidth": "dataset"},
        },
        rose,
        {
            "shrink": ({"shrink": -1}, ValueError, "expected shrink >= 0, but got -1"),
            "shrink kind": ({"shrink": "a"}, TypeError, "expected shrink to be a number or a dict"),
            "shrink of a class": ({"shrink": {1: 1.0}}, ValueError, r"shrink for every class .* none for \[2\]"),
            "bandwidth": ({"bandwidth": "row"}, ValueError, "expected bandwidth in .*, but got 'row'"),
        },
    ),
    Sampler(
        "RandomOverSampler",
        {"default": {}, "shrinkage": {"shrinkage": 1.0}, "by class": {"shrinkage": {1: 0.5, 2: 0.0}}}, random_over,
        {"shrinkage": ({"shrinkage": -1}, ValueError, "expected shrinkage >= 0, but got -1")},
        needs_values=False,
    ),
    Sampler(
        "RandomUnderSampler", {"default": {}, "replacement": {"replacement": True}}, random_under,
        makes=False, chooses=True, needs_values=False,
    ),
    Sampler(
        "TomekLinks", {"default": {}, "all": {"sampling_strategy": "all"}}, tomek,
        {
            "dict": ({"sampling_strategy": {0: 5}}, ValueError, "to be a list of classes, or a name, for cleaning"),
            "number": ({"sampling_strategy": 0.5}, ValueError, "to be a name or a list for cleaning"),
        },
        makes=False, chooses=True, exact=False,
    ),
    Sampler(
        "EditedNearestNeighbours", {"default": {}, "mode": {"kind_sel": "mode", "n_neighbors": 5}}, edited,
        {
            **k_errors("n_neighbors"),
            "kind_sel": ({"kind_sel": "some"}, ValueError, "expected kind_sel in .*, but got 'some'"),
            "too many": ({"n_neighbors": 9999}, ValueError, "expected more than n_neighbors=9999 rows in X"),
        },
        makes=False, chooses=True, exact=False,
    ),
    Sampler(
        "NearMiss",
        {"default": {}, "version 2": {"version": 2}, "version 3": {"version": 3, "n_neighbors_ver3": 20}}, near_miss,
        {
            **k_errors("n_neighbors"), **k_errors("n_neighbors_ver3"),
            "version": ({"version": 4}, ValueError, r"expected version in \(1, 2, 3\), but got 4"),
            "too many": ({"n_neighbors": 400}, ValueError, "expected n_neighbors <= the .* rows of the smallest class"),
        },
        makes=False, chooses=True,
    ),
    Sampler(
        "SMOTEENN", {"default": {}}, smote_enn,
        {
            "enn": ({"enn": imbloss.TomekLinks()}, TypeError, "expected enn to be an imbloss.EditedNearestNeighbours"),
            "smote": ({"smote": 5}, TypeError, "expected smote to be an imbloss.SMOTE or None, but got int 5"),
        },
        exact=False,
    ),
    Sampler(
        "SMOTETomek", {"default": {}}, smote_tomek,
        {"tomek": ({"tomek": 1}, TypeError, "expected tomek to be an imbloss.TomekLinks or None, but got int 1")},
        exact=False,
    ),
]  # fmt: skip
