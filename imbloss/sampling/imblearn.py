"""The samplers as imbalanced-learn's estimators, for its pipelines. Needs the extra ``sklearn``.

Each class is imbalanced-learn's own of that name (parameters and their checks, tags, pandas in and out, strategies)
with imbloss computing, on dense X alone but where rows are only drawn. ``random_state`` goes through
``check_random_state`` once per ``fit_resample``, and the classes draw from it one after the other, so that one
resampled class equals imbalanced-learn's result; its own samplers start an int anew for every class.
"""

import itertools
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch

try:
    from imblearn import combine, over_sampling, under_sampling
    from imblearn.over_sampling.base import BaseOverSampler
    from scipy import sparse
    from sklearn.base import clone
    from sklearn.preprocessing import OneHotEncoder
    from sklearn.utils import _safe_indexing, check_array, check_random_state
    from sklearn.utils._param_validation import Interval, StrOptions
except ImportError as error:
    raise ImportError(
        "imbloss.sampling.imblearn needs scikit-learn and imbalanced-learn: pip install imbloss[sklearn]"
    ) from error

from imbloss.sampling import bootstrap, nominal, smote, under
from imbloss.sampling.base import Rows, Sampler
from imbloss.sampling.draws import NumpyDraws

__all__ = [
    "ADASYN",
    "ROSE",
    "SMOTE",
    "SMOTEENN",
    "SMOTENC",
    "BorderlineSMOTE",
    "EditedNearestNeighbours",
    "NearMiss",
    "RandomOverSampler",
    "RandomUnderSampler",
    "SMOTETomek",
    "TomekLinks",
]


# pyright: reportAttributeAccessIssue=false, reportIncompatibleMethodOverride=false
class Dense:
    """What the faces share: ``_sampler`` makes the imbloss sampler that computes."""

    def _check_X_y(self, X, y, accept_sparse=None):  # noqa: N802, N803
        return super()._check_X_y(_dense_frame(X), y, accept_sparse=False)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags

    def _sampler(self) -> Sampler:
        raise NotImplementedError

    def _resampled(self, X, y):  # noqa: N803
        """X, y and, where all rows are X's own, their indices."""
        getattr(self, "_validate_estimator", lambda: None)()
        labels, codes = np.unique(y, return_inverse=True)
        rows = self._rows(X, torch.from_numpy(codes.reshape(-1)), labels.tolist())
        numbers = {label: code for code, label in enumerate(rows.classes)}
        plan = {numbers[label]: int(count) for label, count in self.sampling_strategy_.items()}
        draws = NumpyDraws(check_random_state(getattr(self, "random_state", None)), rows.x.device)
        sampler = self._sampler()
        x, codes, chosen = sampler._resample(rows, plan, draws)
        for name in ("sample_info_", "in_danger_indices", "median_std_"):
            if hasattr(sampler, name):
                setattr(self, name, getattr(sampler, name))
        return (
            self._as_given(X, rows, x),
            labels[codes.numpy()].astype(y.dtype, copy=False),
            None if chosen is None else chosen.numpy(),
        )

    def _rows(self, X, codes: torch.Tensor, classes: list) -> Rows:  # noqa: N803
        x = np.array(X, dtype=X.dtype if X.dtype.kind == "f" else np.float64)
        return Rows(torch.from_numpy(x), codes, classes)

    def _as_given(self, X, rows: Rows, x: torch.Tensor):  # noqa: N803
        return x.numpy().astype(X.dtype, copy=False)

    def _fit_resample(self, X, y):  # noqa: N803
        return self._resampled(X, y)[:2]


def _dense_frame(X):  # noqa: N803
    return X.sparse.to_dense() if hasattr(X, "columns") and hasattr(X, "sparse") else X


class Choosing(Dense):
    """Samplers whose result is rows of X."""

    def _fit_resample(self, X, y):  # noqa: N803
        self.sample_indices_ = self._resampled(X, y)[2]
        return _safe_indexing(X, self.sample_indices_), _safe_indexing(y, self.sample_indices_)


class Drawing(Choosing):
    """Samplers that never look at X: strings, NaN and sparse rows are as good as numbers."""

    def _check_X_y(self, X, y, accept_sparse=None):  # noqa: N802, N803
        return super(Dense, self)._check_X_y(X, y)

    def __sklearn_tags__(self):
        return super(Dense, self).__sklearn_tags__()

    def _resampled(self, X, y):  # noqa: N803
        return super()._resampled(np.zeros((len(y), 1), dtype=np.float32), y)


def _neighbors(given: Any, checked: Any) -> Any:
    """A number for imbloss to search by, or the object that imbalanced-learn has cloned."""
    return int(given) if isinstance(given, Integral) else checked


class SMOTE(Dense, over_sampling.SMOTE):
    def _sampler(self) -> Sampler:
        return smote.SMOTE(k_neighbors=_neighbors(self.k_neighbors, self.nn_k_))


class BorderlineSMOTE(Dense, over_sampling.BorderlineSMOTE):
    def _sampler(self) -> Sampler:
        k, m = _neighbors(self.k_neighbors, self.nn_k_), _neighbors(self.m_neighbors, self.nn_m_)
        return smote.BorderlineSMOTE(k_neighbors=k, m_neighbors=m, kind=self.kind)


class ADASYN(Dense, over_sampling.ADASYN):
    def _sampler(self) -> Sampler:
        return smote.ADASYN(n_neighbors=_neighbors(self.n_neighbors, self.nn_))


class SMOTENC(Dense, over_sampling.SMOTENC):
    """Sparse X is taken, made dense for the search, and comes back sparse."""

    def _check_X_y(self, X, y, accept_sparse=None):  # noqa: N802, N803
        return super(Dense, self)._check_X_y(_dense_frame(X), y)

    def _resampled(self, X, y):  # noqa: N803
        self.n_features_ = X.shape[1]
        self._validate_column_types(X)
        return super()._resampled(X, y)

    def _sampler(self) -> Sampler:
        return nominal.SMOTENC(self.categorical_features_, k_neighbors=_neighbors(self.k_neighbors, self.nn_k_))

    def _rows(self, X, codes: torch.Tensor, classes: list) -> Rows:  # noqa: N803
        numeric, categorical = self.continuous_features_.tolist(), self.categorical_features_.tolist()
        x = check_array(_dense(_safe_indexing(X, numeric, axis=1)))
        x = np.array(x, dtype=x.dtype if x.dtype.kind == "f" else np.float64)
        return nominal.MixedRows(
            torch.from_numpy(x), codes, classes, numeric=numeric, nominal=categorical, values=self._encoded(X)
        )

    def _encoded(self, X) -> torch.Tensor:  # noqa: N803
        """Codes (n, c) of the categorical columns, by the encoder, which has to have a column for every category."""
        given = self.categorical_encoder
        self.categorical_encoder_ = OneHotEncoder(handle_unknown="ignore") if given is None else clone(given)
        columns: Any = _dense(_safe_indexing(X, self.categorical_features_, axis=1))
        one_hot: Any = sparse.csr_matrix(self.categorical_encoder_.fit_transform(columns))
        ends = list(itertools.accumulate((len(c) for c in self.categorical_encoder_.categories_), initial=0))
        if one_hot.shape[1] != ends[-1] or one_hot.nnz != len(columns) * len(ends[1:]):
            raise ValueError(
                "SMOTENC requires a one-hot encoding with one column per category, but `categorical_encoder` made "
                f"{one_hot.shape[1]} columns of {ends[-1]} categories: pass one that neither drops nor merges any"
            )
        one_hot.sort_indices()
        return torch.from_numpy(one_hot.indices.reshape(len(columns), -1) - np.array(ends[:-1]))

    def _as_given(self, X, rows: Rows, x: torch.Tensor):  # noqa: N803
        assert isinstance(rows, nominal.MixedRows)
        values, encoder = rows.values.numpy(), self.categorical_encoder_
        categories = [of_column[values[:, place]] for place, of_column in enumerate(encoder.categories_)]
        dtype = object if hasattr(X, "columns") else X.dtype
        out = np.empty((len(x), X.shape[1]), dtype=dtype)
        out[:, rows.numeric] = x.numpy()
        for j, of_column in zip(rows.nominal, categories, strict=True):
            out[:, j] = of_column
        return sparse.csr_matrix(out) if sparse.issparse(X) else out


def _dense(X):  # noqa: N803
    return X.toarray() if sparse.issparse(X) else X


class ROSE(Dense, BaseOverSampler):
    """:class:`imbloss.ROSE` as an estimator; imbalanced-learn has none of this name."""

    _parameter_constraints: ClassVar[dict] = {  # pyright: ignore[reportIncompatibleVariableOverride]
        **BaseOverSampler._parameter_constraints,
        "shrink": [Interval(Real, 0, None, closed="left"), dict],
        "keep_originals": ["boolean"],
        "bandwidth": [StrOptions(set(bootstrap.BANDWIDTHS))],
    }

    def __init__(
        self, *, sampling_strategy="auto", random_state=None, shrink=1.0, keep_originals=True, bandwidth="class"
    ):
        super().__init__(sampling_strategy=sampling_strategy)
        self.random_state = random_state
        self.shrink = shrink
        self.keep_originals = keep_originals
        self.bandwidth = bandwidth

    def _sampler(self) -> Sampler:
        return bootstrap.ROSE(shrink=self.shrink, keep_originals=self.keep_originals, bandwidth=self.bandwidth)


class RandomOverSampler(Drawing, over_sampling.RandomOverSampler):
    def _sampler(self) -> Sampler:
        return bootstrap.RandomOverSampler(shrinkage=self.shrinkage_)

    def _fit_resample(self, X, y):  # noqa: N803
        self.shrinkage_ = self.shrinkage
        if isinstance(self.shrinkage, Real):
            self.shrinkage_ = dict.fromkeys(self.sampling_strategy_ or {}, self.shrinkage)
        if self.shrinkage_ is None:
            x, labels = super()._fit_resample(X, y)
            return x.reset_index(drop=True) if hasattr(x, "reset_index") else x, labels
        x, labels, _ = Dense._resampled(self, _numbers(X, self.shrinkage_, self.sampling_strategy_ or {}), y)
        self.sample_indices_ = np.concatenate([np.arange(len(y)), self.sample_info_.parent.numpy()])
        return x, labels


def _numbers(X, shrinkage: Mapping, strategy: Mapping) -> np.ndarray:  # noqa: N803
    """X to make a smoothed bootstrap of; the errors are imbalanced-learn's."""
    if missing := strategy.keys() - shrinkage.keys():
        raise ValueError(
            "`shrinkage` should contain a shrinkage factor for each class that will be resampled. The missing classes "
            f"are: {missing!r}"
        )
    for label, factor in shrinkage.items():
        if factor < 0:
            raise ValueError(f"The shrinkage factor needs to be >= 0. Got {factor} for class {label}.")
    try:
        return check_array(X, dtype="numeric")
    except ValueError as error:
        raise ValueError(
            "When shrinkage is not None, X needs to contain only numerical data to later generate a smoothed "
            "bootstrap sample."
        ) from error


class RandomUnderSampler(Drawing, under_sampling.RandomUnderSampler):
    def _sampler(self) -> Sampler:
        return under.RandomUnderSampler(replacement=self.replacement)


class TomekLinks(Choosing, under_sampling.TomekLinks):
    def _sampler(self) -> Sampler:
        return under.TomekLinks()


class EditedNearestNeighbours(Choosing, under_sampling.EditedNearestNeighbours):
    def _sampler(self) -> Sampler:
        neighbors = _neighbors(self.n_neighbors, self.nn_)
        return under.EditedNearestNeighbours(n_neighbors=neighbors, kind_sel=self.kind_sel)


class NearMiss(Choosing, under_sampling.NearMiss):
    def _sampler(self) -> Sampler:
        third = _neighbors(self.n_neighbors_ver3, self.nn_ver3_) if self.version == 3 else 1
        neighbors = _neighbors(self.n_neighbors, self.nn_)
        return under.NearMiss(version=self.version, n_neighbors=neighbors, n_neighbors_ver3=third)


class Combined(Dense):
    """imbalanced-learn's combination, of imbloss's samplers where none are given."""

    def _fit_resample(self, X, y):  # noqa: N803
        return super(Dense, self)._fit_resample(X, y)

    def _over(self):
        if self.smote is not None:
            return clone(self.smote)
        return SMOTE(sampling_strategy=self.sampling_strategy, random_state=self.random_state)


class SMOTEENN(Combined, combine.SMOTEENN):
    def _validate_estimator(self):
        self.smote_ = self._over()
        default = EditedNearestNeighbours(sampling_strategy="all", n_jobs=self.n_jobs)
        self.enn_ = default if self.enn is None else clone(self.enn)


class SMOTETomek(Combined, combine.SMOTETomek):
    def _validate_estimator(self):
        self.smote_ = self._over()
        default = TomekLinks(sampling_strategy="all", n_jobs=self.n_jobs)
        self.tomek_ = default if self.tomek is None else clone(self.tomek)
