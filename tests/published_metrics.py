"""A pytest plugin: the tests of the installed scikit-learn and imbalanced-learn, computed by imbloss.

Their names are replaced in their test modules by faces with their signatures. What imbloss does not have (weighted
kappa, averages over samples, one against one, beta other than 1) or decides otherwise (areas of a class without
positives or negatives) goes to the original.
"""

import importlib
import inspect

import numpy as np
import pytest
import torch

from imbloss import metrics as ours
from imbloss.metrics import functional, margins, tallies
from imbloss.metrics.margins import Counts

TESTS = {
    "imblearn.metrics.tests.test_classification": [
        "test_sensitivity_specificity_score_binary",
        "test_sensitivity_specificity_f_binary_single_class",
        "test_sensitivity_specificity_extra_labels",
        "test_sensitivity_specificity_ignored_labels",
        "test_geometric_mean_support_binary",
        "test_geometric_mean_multiclass",
        "test_geometric_mean_average",
        "test_geometric_mean_sample_weight",
        "test_geometric_mean_score_prediction",
        "test_iba_geo_mean_binary",
        "test_iba_sklearn_metrics",
        "test_classification_report_imbalanced_multiclass",
        "test_classification_report_imbalanced_multiclass_with_digits",
        "test_classification_report_imbalanced_multiclass_with_string_label",
        "test_classification_report_imbalanced_multiclass_with_unicode_label",
        "test_classification_report_imbalanced_multiclass_with_long_string_label",
    ],
    "sklearn.metrics.tests.test_classification": [
        "test_precision_recall_f1_score_binary",
        "test_precision_recall_f_binary_single_class",
        "test_precision_recall_f_extra_labels",
        "test_precision_recall_f_ignored_labels",
        "test_average_precision_score_duplicate_values",
        "test_average_precision_score_tied_values",
        "test_cohen_kappa",
        "test_matthews_corrcoef_against_numpy_corrcoef",
        "test_matthews_corrcoef_against_jurman",
        "test_matthews_corrcoef",
        "test_matthews_corrcoef_multiclass",
        "test_matthews_corrcoef_overflow",
        "test_precision_recall_f1_score_multiclass",
        "test_precision_refcall_f1_score_multilabel_unordered_labels",
        "test_precision_recall_f1_score_binary_averaged",
        "test_zero_precision_recall",
        "test_precision_recall_f1_score_multilabel_1",
        "test_precision_recall_f1_score_multilabel_2",
        "test_brier_score_loss_multiclass",
        "test_balanced_accuracy_score",
    ],
    "sklearn.metrics.tests.test_ranking": [
        "test_multiclass_ovr_roc_auc_toydata",
        "test_perfect_imperfect_chance_multiclass_roc_auc",
        "test_roc_curve_toydata",
        "test_precision_recall_curve",
        "test_precision_recall_curve_toydata",
        "test_average_precision_constant_values",
        "test_score_scale_invariance",
    ],
}
# Counts negatives without their weights (size of y_true less weighted sums): see test_a_weight_is_a_repetition.
WRONG = {"test_geometric_mean_sample_weight[y_true2-y_pred2-sample_weight2-weighted-0.333]"}
CALLS = dict.fromkeys(("counts", "areas", "brier"), 0)


# ---- the faces ---------------------------------------------------------------------------------------------------
def tensor(values):
    return None if values is None else torch.as_tensor(np.asarray(values, dtype=np.float64))


def confusion(y_true, y_pred, labels=None, sample_weight=None) -> tuple[Counts, list]:
    """Margins and classes of lists of labels, or of indicator matrices."""
    CALLS["counts"] += 1
    y_true, y_pred = (y.ravel() if y.ndim == 2 and y.shape[1] == 1 else y for y in map(np.asarray, (y_true, y_pred)))
    if y_true.ndim == 2:
        target, answer = (torch.as_tensor(np.asarray(y).astype(np.int8)) for y in (y_true, y_pred))
        table = torch.zeros(4, y_true.shape[1], dtype=torch.float64)
        tallies.add_labels(table, answer, target, tensor(sample_weight))
        chosen = list(range(y_true.shape[1])) if labels is None else list(labels)
        return Counts(*table).of(chosen), chosen
    there = sorted({*y_true.tolist(), *y_pred.tolist()})
    classes = there if labels is None else list(labels)
    known = sorted({*there, *classes})
    target, answer = (torch.tensor([known.index(v) for v in y.tolist()]) for y in (y_true, y_pred))
    counts = ours.counts(answer, target, len(known), sample_weight=tensor(sample_weight))
    return counts.of([known.index(c) for c in classes]), classes


def rate(name, original, default):
    def face(y_true, y_pred, *, labels=None, pos_label=1, average=default, sample_weight=None, zero_division=0, **rest):
        if average == "samples" or (np.asarray(y_true).ndim == 2 and labels is not None and not valid(labels, y_true)):
            return original(y_true, y_pred, labels=labels, average=average)
        undefined = 0.0 if zero_division == "warn" else float(zero_division)
        counts, classes = confusion(y_true, y_pred, labels, sample_weight)
        values = margins.rates(counts, undefined)
        if average == "binary":
            return float(values[name][classes.index(pos_label)]) if pos_label in classes else 0.0
        if average is None:
            return values[name].numpy()
        return float(margins.averages(counts, values, undefined)[average][name])

    return face


def valid(labels, y_true):
    return set(labels) <= set(range(np.asarray(y_true).shape[1]))


def precision_recall_fscore_support(original):
    def face(y_true, y_pred, *, beta=1.0, labels=None, average=None, **rest):
        if average == "samples" or beta != 1:
            return original(y_true, y_pred, beta=beta, labels=labels, average=average, **rest)
        keywords = {"labels": labels, "average": average}
        values = [rate(name, None, None)(y_true, y_pred, **keywords) for name in ("precision", "recall", "f1")]
        support = confusion(y_true, y_pred, labels)[0].support.numpy() if average is None else None
        return *values, support

    return face


def geometric_mean(original):
    def face(y_true, y_pred, *, labels=None, pos_label=1, average="multiclass", sample_weight=None, correction=0.0):
        counts, _ = confusion(y_true, y_pred, labels, sample_weight)
        return functional.geometric_mean_of(counts, average, correction).numpy()

    return face


def index_balanced(original):
    def make(*, alpha=0.1, squared=True):
        def decorate(score):
            def face(y_true, y_pred):
                counts, _ = confusion(y_true, y_pred)
                rates = margins.rates(counts)
                recall, specificity = rates["recall"][1], rates["specificity"][1]
                default = inspect.signature(score).parameters.get("average")
                if default is not None and default.default == "multiclass":
                    macro = margins.averages(counts, rates)["macro"]
                    recall, specificity = macro["recall"], macro["specificity"]
                value = torch.as_tensor(float(score(y_true, y_pred)), dtype=torch.float64)
                return float(margins.index_balanced(value, recall, specificity, alpha, squared))

            return face

        return decorate

    return make


def report(original):
    """Their layout, of our numbers."""

    def face(y_true, y_pred, *, labels=None, target_names=None, digits=2):
        counts, classes = confusion(y_true, y_pred, labels)
        rates = margins.rates(counts)
        weighted = margins.averages(counts, rates)["weighted"]
        lines = ["pre rec spe f1 geo iba sup"]
        for c, name in enumerate(classes if target_names is None else target_names):
            lines.append(
                f"{name} {' '.join(f'{rates[r][c]:.{digits}f}' for r in margins.RATES)} {counts.support[c]:.0f}"
            )
        means = " ".join(f"{weighted[r]:.{digits}f}" for r in margins.RATES)
        return "\n".join([*lines, f"avg / total {means} {counts.support.sum():.0f}"])

    return face


def of_confusion(function):
    def make(original):
        def face(y_true, y_pred, *, labels=None, weights=None, sample_weight=None, **rest):
            if weights is not None:
                return original(y_true, y_pred, labels=labels, weights=weights)
            if labels is not None:  # samples of other classes are no samples
                keep = np.isin(y_true, labels) & np.isin(y_pred, labels)
                y_true, y_pred = np.asarray(y_true)[keep], np.asarray(y_pred)[keep]
            return float(function(confusion(y_true, y_pred, None, sample_weight)[0], **rest))

        return face

    return make


def area(function):
    def make(original):
        def face(
            y_true, y_score, *, average="macro", multi_class="raise", labels=None, pos_label=1, sample_weight=None
        ):
            y_true, y_score = np.asarray(y_true), torch.as_tensor(np.asarray(y_score, dtype=np.float64))
            if multi_class == "ovo" or average in ("micro", "samples"):
                rest = {} if multi_class == "raise" else {"multi_class": multi_class}
                return original(y_true, y_score, average=average, **rest)
            CALLS["areas"] += 1
            if y_true.ndim == 2:
                target = torch.as_tensor(y_true.astype(np.int64))
            elif y_score.ndim == 2:
                target = torch.as_tensor(np.searchsorted(np.unique(y_true) if labels is None else labels, y_true))
            else:
                target = torch.as_tensor(y_true == pos_label if -1 in y_true else y_true.astype(bool)).long()
            if function(y_score, target, average=None).isnan().any():
                return original(y_true, y_score, average=average)
            value = function(y_score, target, average=average, sample_weight=tensor(sample_weight))
            return value.numpy() if average is None else float(value)

        return face

    return make


def brier(original):
    def face(y_true, y_proba, *, labels=None, **rest):
        CALLS["brier"] += 1
        classes = list(np.unique(y_true)) if labels is None else list(labels)
        target = torch.tensor([classes.index(y) for y in y_true])
        return float(ours.brier_score(tensor(y_proba), target))

    return face


FACES = {
    "precision_score": lambda original: rate("precision", original, "binary"),
    "recall_score": lambda original: rate("recall", original, "binary"),
    "f1_score": lambda original: rate("f1", original, "binary"),
    "sensitivity_score": lambda original: rate("recall", original, "binary"),
    "specificity_score": lambda original: rate("specificity", original, "binary"),
    "sensitivity_specificity_support": lambda original: (
        lambda *y, average: (
            rate("recall", None, None)(*y, average=average),
            rate("specificity", None, None)(*y, average=average),
            confusion(*y)[0].support.numpy(),
        )
    ),
    "precision_recall_fscore_support": precision_recall_fscore_support,
    "geometric_mean_score": geometric_mean,
    "make_index_balanced_accuracy": index_balanced,
    "classification_report_imbalanced": report,
    "matthews_corrcoef": of_confusion(margins.mcc),
    "cohen_kappa_score": of_confusion(margins.kappa),
    "balanced_accuracy_score": of_confusion(functional.balanced_accuracy_of),
    "roc_auc_score": area(ours.auroc),
    "average_precision_score": area(ours.average_precision),
    "brier_score_loss": brier,
}


# ---- the plugin --------------------------------------------------------------------------------------------------
def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if item.originalname in TESTS[item.module.__name__] and item.name not in WRONG]
    for name in {item.module.__name__ for item in items}:
        module = importlib.import_module(name)
        for function, face in FACES.items():
            if hasattr(module, function):
                setattr(module, function, face(getattr(module, function)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before = sum(CALLS.values())
    result = yield
    # what goes to the original alone is no test of ours
    foreign = "ovo" in item.name or ("micro]" in item.name and "imperfect" in item.name) or "[samples]" in item.name
    assert foreign or sum(CALLS.values()) > before, "nothing here was computed by imbloss"
    return result
