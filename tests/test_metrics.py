"""Metrics: equal to scikit-learn's and torchmetrics', with ties, weights, bad input and whatever is absent."""

import copy
import json
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics import MetricCollection
from torchmetrics.functional import classification as tm

import imbloss
from imbloss import metrics as ours
from imbloss.metrics import bootstrap, margins, ranking, tallies

C = 5


def data(n=400, classes=C, seed=0):
    """Logits that know a little, and long-tailed classes."""
    generator = torch.Generator().manual_seed(seed)
    prior = 0.5 ** torch.arange(classes)
    y = torch.multinomial(prior, n, replacement=True, generator=generator)
    z = torch.randn(n, classes, generator=generator) * 2
    z[torch.arange(n), y] += 1.5
    return z, y


def close(got, want, tolerance=1e-12):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=tolerance, atol=tolerance)


# ---- areas -------------------------------------------------------------------------------------------------------
SCORES = {
    "probabilities": lambda z: z.softmax(1),
    "logits": lambda z: z,
    "few values": lambda z: z.round(),
    "negative zeros": lambda z: z.round().clamp(-1, 0) * torch.tensor([0.0, -1.0]).repeat(len(z))[: len(z), None],
    "infinities": lambda z: torch.where(z.abs() > 2, z * torch.inf, z),
    "constant": torch.zeros_like,
    "bfloat16": lambda z: z.bfloat16(),
    "float64": lambda z: z.double() * 1e-300,
}
WEIGHTS = {
    "unweighted": lambda n: None,
    "weights": lambda n: torch.rand(n),
    "weights from 0 to 2": lambda n: torch.randint(0, 3, (n,)),
    "huge and tiny": lambda n: 10.0 ** torch.randint(-9, 9, (n,)),
}


@pytest.mark.parametrize("labels", [False, True], ids=["classes", "labels"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("kind", SCORES)
def test_areas_equal_scikit_learns(kind, weights, labels):
    z, y = data()
    scores, weight = SCORES[kind](z), WEIGHTS[weights](len(y))
    target = torch.rand(z.shape).argsort(1) < 2 if labels else y
    before = scores.clone()
    auroc, precision = ours.auroc_and_average_precision(scores, target, sample_weight=weight)
    assert torch.equal(scores, before)
    w = None if weight is None else weight.numpy()
    s = np.nan_to_num(scores.double().numpy(), posinf=1e300, neginf=-1e300)  # theirs takes no infinities
    for c in range(C):
        positive = (target[:, c] if labels else target == c).numpy()
        assert auroc[c].item() == pytest.approx(sk.roc_auc_score(positive, s[:, c], sample_weight=w), abs=1e-9)
        want = sk.average_precision_score(positive, s[:, c], sample_weight=w)
        assert precision[c].item() == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_averages_of_areas_equal_scikit_learns(average):
    z, y = data()
    p = z.softmax(1)
    want = sk.roc_auc_score(y, p.double().numpy() / p.double().numpy().sum(1, keepdims=True),
                            multi_class="ovr", average=average)  # fmt: skip
    assert float(ours.auroc(p, y, average=average)) == pytest.approx(want, abs=1e-6)
    want = sk.average_precision_score(np.eye(C)[y], p.numpy(), average=average)
    assert float(ours.average_precision(p, y, average=average)) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk", [1, 900, 10**9])
def test_chunks_change_no_bit(chunk, weighted):
    z, y = data()
    weight = torch.rand(len(y)) if weighted else None
    whole = ranking.auroc_and_average_precision(z, y, weight)
    parts = ranking.auroc_and_average_precision(z, y, weight, chunk)
    assert all(map(torch.equal, whole, parts))


def test_the_order_of_samples_changes_no_bit():
    z, y = data(n=3001)
    z = (4 * z).round() / 4
    order = torch.randperm(len(y))
    assert all(map(torch.equal, ranking.auroc_and_average_precision(z, y),
                   ranking.auroc_and_average_precision(z[order], y[order])))  # fmt: skip


def test_ranks_of_logits_do_not_saturate():
    """float32 softmax is 1 for both samples; their odds differ."""
    z = torch.tensor([[40.0, 0.0], [30.0, 0.0], [0.0, 1.0]])
    odds = tallies.log_odds(z)
    close(odds[:, 0], [40, 30, -1], 1e-6)
    assert z.softmax(1)[0, 0] == z.softmax(1)[1, 0]
    z, _ = data(classes=7)
    close(tallies.log_odds(z).double(), z.double().softmax(1).logit(), 1e-5)


def test_a_class_that_is_everything_or_nothing_has_no_area():
    scores = torch.rand(6, 3)
    target = torch.tensor([0, 0, 0, 2, 2, 2])
    auroc, precision = ours.auroc_and_average_precision(scores, target)
    assert auroc.isnan().tolist() == precision.isnan().tolist() == [False, True, False]
    with pytest.warns(UserWarning, match="leaves out classes without positives or negatives: 1"):
        assert float(ours.auroc(scores, target)) == pytest.approx(float(auroc[[0, 2]].mean()))
    auroc, precision = ours.auroc_and_average_precision(scores, torch.zeros(6, dtype=torch.int64))
    assert auroc.isnan().all() and precision[0] == 1 and precision[1:].isnan().all()
    for weight in (None, torch.ones(0)):
        empty = ours.auroc_and_average_precision(scores[:0], target[:0], sample_weight=weight)
        assert all(area.shape == (3,) and area.isnan().all() for area in empty)
    one = ours.auroc_and_average_precision(torch.tensor([0.5]), torch.tensor([1]))
    assert one[0].isnan() and one[1] == 1


def test_nan_scores_make_their_class_nan():
    z, y = data()
    z[3, 1] = torch.nan
    for weight in (None, torch.ones(len(y))):
        auroc, precision = ours.auroc_and_average_precision(z, y, sample_weight=weight)
        assert auroc.isnan().tolist() == precision.isnan().tolist() == [c == 1 for c in range(C)]
    assert ours.auroc(z, y).isnan()


def test_curves_are_scikit_learns():
    z, y = data()
    z, weight = (2 * z).round(), torch.rand(len(y)).double()
    for w in (None, weight):
        for c, (tp, fp) in enumerate(ranking.curves(z, y, w)):
            fpr, tpr, _ = sk.roc_curve(y == c, z[:, c], sample_weight=w, drop_intermediate=False)
            close(tp / tp[-1], tpr[1:])
            close(fp / fp[-1], fpr[1:])


# ---- histograms --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("labels", [False, True], ids=["classes", "labels"])
@pytest.mark.parametrize("bins", [2, 10, 100, 2048])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_the_bound_of_a_histogram_holds(bins, spread, labels):
    z, y = data(n=700)
    target = torch.rand(z.shape) < 0.1 if labels else y
    odds = z * spread if labels else tallies.log_odds(z * spread)
    histogram = torch.zeros(C, bins, 2, dtype=torch.float64)
    for part in range(0, 700, 100):
        rows = target[part : part + 100]
        tallies.add_histogram(histogram, odds[part : part + 100], rows.to(torch.int8) if labels else rows, None)
    assert histogram.sum() == 700 * C
    *got, auroc_bound, precision_bound = tallies.histogram_areas(histogram)
    exact = ranking.auroc_and_average_precision(odds, target)
    for approximate, true, bound in zip(got, exact, (auroc_bound, precision_bound), strict=True):
        assert ((approximate - true).abs() <= bound + 1e-12).all()
    if bins == 2048 and spread == 1:
        assert auroc_bound.max() < 0.01 and precision_bound.max() < 0.05


def test_the_bound_of_a_histogram_is_reached():
    """Perfect order within one bin: 1/2 against 1."""
    histogram = torch.zeros(1, 2, 2, dtype=torch.float64)
    tallies.add_histogram(histogram, torch.tensor([[1.0], [2.0]]), torch.tensor([[0], [1]]), None)
    auroc, precision, auroc_bound, precision_bound = (t.item() for t in tallies.histogram_areas(histogram))
    assert (auroc, auroc_bound, precision, precision_bound) == (0.5, 0.5, 0.5, 0.5)


# ---- confusion ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("weighted", [False, True])
def test_rates_equal_scikit_learns(weighted):
    z, y = data()
    weight = torch.rand(len(y)).double() if weighted else None
    answer, w = z.argmax(1), None if weight is None else weight.numpy()
    counts = ours.counts(z, y, sample_weight=weight)
    rates = margins.rates(counts)
    for average in (None, "macro", "micro", "weighted"):
        mine = rates if average is None else margins.averages(counts, rates)[average]
        want = sk.precision_recall_fscore_support(y, answer, average=average, sample_weight=w)
        for name, values in zip(("precision", "recall", "f1"), want, strict=False):
            close(mine[name], values)
    close(margins.accuracy(counts), sk.accuracy_score(y, answer, sample_weight=w))
    close(margins.mcc(counts), sk.matthews_corrcoef(y, answer, sample_weight=w))
    close(margins.kappa(counts), sk.cohen_kappa_score(y, answer, sample_weight=w))
    want = sk.balanced_accuracy_score(y, answer, sample_weight=w)
    assert float(ours.balanced_accuracy(z, y, sample_weight=weight)) == pytest.approx(want, abs=1e-6)
    want = sk.balanced_accuracy_score(y, answer, sample_weight=w, adjusted=True)
    assert float(ours.balanced_accuracy(answer, y, sample_weight=weight, adjusted=True)) == pytest.approx(
        want, abs=1e-6
    )


def test_two_sided_counts_are_those_of_two_classes():
    z, y = data()
    own = margins.two_sided(ours.counts(z, y))
    for c in range(C):
        close(margins.mcc(own)[c], sk.matthews_corrcoef(y == c, z.argmax(1) == c))
        close(margins.kappa(own)[c], sk.cohen_kappa_score(y == c, z.argmax(1) == c))


def test_a_sample_without_an_answer_is_missed():
    """As if there were a class more, which nobody is of."""
    z, y = data()
    z[::7, 2] = torch.nan
    answer = torch.where(torch.arange(len(y)) % 7 == 0, C, z.nan_to_num().argmax(1))
    counts = ours.counts(z, y)
    close(margins.accuracy(counts), sk.accuracy_score(y, answer))
    close(margins.mcc(counts), sk.matthews_corrcoef(y, answer))
    close(margins.kappa(counts), sk.cohen_kappa_score(y, answer))
    close(margins.rates(counts)["precision"], sk.precision_score(y, answer, labels=range(C), average=None))
    close(margins.rates(counts)["recall"], sk.recall_score(y, answer, labels=range(C), average=None))


def test_shots_are_means_of_classes():
    y = torch.tensor([0, 0, 0, 1, 2, 3])
    answer = torch.tensor([0, 0, 1, 1, 0, 3])
    train = torch.tensor([101, 100, 20, 19])
    got = ours.shot_accuracy(answer, y, train_counts=train)
    assert {name: round(float(v), 4) for name, v in got.items()} == {"many": 0.6667, "medium": 0.5, "few": 1.0}
    assert ours.shot_accuracy(answer, y, train_counts=train, few=1)["few"].isnan()


def test_index_balanced_accuracy_of_another_score():
    counts = ours.counts(*data())
    rates = margins.rates(counts)
    got = ours.index_balanced_accuracy(*data(), alpha=0.5, squared=False, average=None, score=lambda r: r["f1"])
    close(got, (1 + 0.5 * (rates["recall"] - rates["specificity"])) * rates["f1"], 1e-6)


@pytest.mark.parametrize("metric", ["GeometricMean", "BalancedAccuracy", "IndexBalancedAccuracy"])
def test_a_metric_over_batches_is_its_function(metric):
    z, y = data()
    y[::9] = -100
    weight = torch.rand(len(y))
    function = {"GeometricMean": ours.geometric_mean, "BalancedAccuracy": ours.balanced_accuracy,
                "IndexBalancedAccuracy": ours.index_balanced_accuracy}[metric]  # fmt: skip
    module = getattr(imbloss, metric)(C)
    for part in torch.arange(len(y)).split(64):
        module(z[part], y[part], weight[part])
    close(module.compute(), function(z, y, sample_weight=weight), 1e-6)
    again = pickle.loads(pickle.dumps(module))
    assert torch.equal(again.compute(), module.compute())
    module.reset()
    assert module.confusion.sum() == 0


def test_metrics_are_torchmetrics():
    """Collections, clones, and a forward that returns the batch's value and adds it to the whole."""
    z, y = data()
    train_counts = torch.tensor([500, 50, 20, 5, 1])
    metrics = MetricCollection(
        [imbloss.ImbalanceReport(C), imbloss.GeometricMean(C), imbloss.ShotAccuracy(C, train_counts)]
    ).clone(prefix="test_")
    of_batch = metrics(z[:100], y[:100])
    assert of_batch["test_balanced_accuracy"] == ours.balanced_accuracy(z[:100], y[:100])
    metrics.update(z[100:], y[100:])
    got = metrics.compute()
    assert got["test_balanced_accuracy"] == ours.balanced_accuracy(z, y)
    assert got["test_GeometricMean"] == ours.geometric_mean(z, y)
    assert got["test_few"] == ours.shot_accuracy(z, y, train_counts=train_counts)["few"]
    figure, _ = imbloss.GeometricMean(C).plot(got["test_GeometricMean"])
    assert figure.axes


def test_segmentation_is_flattened():
    z, y = torch.randn(2, C, 3, 4), torch.randint(C, (2, 3, 4))
    flat = z.movedim(1, -1).reshape(-1, C), y.reshape(-1)
    close(ours.balanced_accuracy(z, y), ours.balanced_accuracy(*flat))
    weight = torch.tensor([1.0, 3.0])
    close(ours.balanced_accuracy(z, y, sample_weight=weight),
          ours.balanced_accuracy(*flat, sample_weight=weight.repeat_interleave(12)))  # fmt: skip
    report = imbloss.ImbalanceReport(C)
    report.update(z, y)
    close(report.compute()["balanced_accuracy"], ours.balanced_accuracy(z, y))


# ---- calibration -------------------------------------------------------------------------------------------------
def test_calibration_equals_torchmetrics_and_scikit_learn():
    z, y = data()
    p = z.softmax(1)
    assert float(ours.calibration_error(p, y)) == pytest.approx(
        float(tm.multiclass_calibration_error(p, y, C, n_bins=15)), abs=1e-6
    )
    assert float(ours.brier_score(p, y)) == pytest.approx(
        sk.brier_score_loss(y, p.double() / p.double().sum(1, keepdim=True)), abs=1e-6
    )
    weight = torch.rand(len(y)).double()
    one, positive = p[:, 0], (y == 0).long()
    want = float(tm.binary_calibration_error(one, positive, n_bins=10))
    assert float(ours.calibration_error(one, positive, bins=10)) == pytest.approx(want, abs=1e-6)
    want = sk.brier_score_loss(positive, one, sample_weight=weight)
    assert float(ours.brier_score(one, positive, sample_weight=weight)) == pytest.approx(want, abs=1e-6)


# ---- the report --------------------------------------------------------------------------------------------------
def fed(z, y, *, parts=(100,), weight=None, classes=C, **keywords):
    report = imbloss.ImbalanceReport(classes, **keywords)
    start = 0
    while start < len(y):
        for size in parts:
            part = slice(start, start + size)
            report.update(z[part], y[part], None if weight is None else weight[part])
            start += size
    return report


@pytest.mark.parametrize("weighted", [False, True])
def test_a_report_is_what_its_parts_are(weighted):
    z, y = data()
    y[::11] = -100
    weight = torch.rand(len(y)).double() if weighted else None
    keep = y >= 0
    p, t = z[keep].double().softmax(1), y[keep]
    w = None if weight is None else weight[keep]
    report = fed(z, y, parts=(7, 64), weight=weight, train_counts=torch.tensor([500, 50, 20, 5, 1]))
    got = {name: float(value) for name, value in report.compute().items()}
    np_w = None if w is None else w.numpy()
    want = {
        "accuracy": sk.accuracy_score(t, p.argmax(1), sample_weight=np_w),
        "balanced_accuracy": sk.balanced_accuracy_score(t, p.argmax(1), sample_weight=np_w),
        "g_mean": float(ours.geometric_mean(p, t, sample_weight=w)),
        "macro_f1": sk.f1_score(t, p.argmax(1), average="macro", sample_weight=np_w),
        "auroc": np.mean([sk.roc_auc_score(t == c, p[:, c], sample_weight=np_w) for c in range(C)]),
        "average_precision": np.mean(
            [sk.average_precision_score(t == c, p[:, c], sample_weight=np_w) for c in range(C)]
        ),
        "ece": float(ours.calibration_error(p, t, sample_weight=w)),
        "brier": float(ours.brier_score(p, t, sample_weight=w)),
        "worst_recall": sk.recall_score(t, p.argmax(1), average=None, sample_weight=np_w).min(),
    }
    for name, value in want.items():
        assert got[name] == pytest.approx(value, abs=2e-6), name
    shots = ours.shot_accuracy(p, t, train_counts=torch.tensor([500, 50, 20, 5, 1]), sample_weight=w)
    assert got["few_shot_accuracy"] == pytest.approx(float(shots["few"]), abs=1e-6)
    everything = json.loads(json.dumps(report.to_dict()))
    assert everything["worst_class"] == str(int(report.findings()["classes"]["recall"].argmin()))
    assert sum(map(sum, everything["confusion"])) == pytest.approx(float(len(t) if w is None else w.sum()))


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
@pytest.mark.parametrize("curves", ["exact", "histogram"])
def test_logits_and_probabilities_are_told_apart(task, curves):
    z, y = data(classes=2 if task == "binary" else C)
    if task == "binary":
        z, p = z[:, 1], z[:, 1].sigmoid()
    elif task == "multilabel":
        p, y = z.sigmoid(), (torch.rand(z.shape) < 0.2).long()
    else:
        p = z.softmax(1)
    classes = 2 if task == "binary" else C
    auto = curves == "exact"
    of_logits = fed(z, y, classes=classes, task=task, curves=curves, scores="auto" if auto else "logits")
    of_p = fed(p, y, classes=classes, task=task, curves=curves, scores="auto" if auto else "probabilities")
    for name, value in of_logits.compute().items():
        assert float(value) == pytest.approx(float(of_p.compute()[name]), abs=2e-3 if not auto else 1e-5), name


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_histograms_and_answers_agree_with_the_exact_report(task):
    z, y = data(classes=2 if task == "binary" else C)
    if task == "binary":
        z = z[:, 1]
    if task == "multilabel":
        y = torch.where(torch.rand(z.shape) < 0.05, -100, (torch.rand(z.shape) < 0.2).long())
    keywords = {"classes": 2 if task == "binary" else C, "task": task, "scores": "logits"}
    exact, histogram, plain = (fed(z, y, curves=curves, **keywords) for curves in ("exact", "histogram", "none"))
    bounds = histogram.to_dict()["error_bounds"]
    of_plain = plain.compute()
    for name, value in exact.compute().items():
        bound = bounds.get(name, 0) + 1e-7
        assert abs(float(value) - float(histogram.compute()[name])) <= bound, name
        assert name in ("auroc", "average_precision", "ece", "brier") or of_plain[name] == value
    answer = z.argmax(1) if task == "multiclass" else (z > 0).long()
    given = fed(answer, y, curves="none", **keywords)
    assert {n: float(v) for n, v in given.compute().items()} == {n: float(v) for n, v in of_plain.items()}


def test_labels_are_questions_of_their_own():
    z = data()[0]
    y = (torch.rand(z.shape) < 0.3).long()
    y[::5, 1] = -100
    got = fed(z, y, task="multilabel", threshold=0.3).to_dict()
    for c in range(C):
        keep = y[:, c] >= 0
        t, p = y[keep, c], z[keep, c].sigmoid()
        row = got["classes"][str(c)]
        assert row["recall"] == pytest.approx(sk.recall_score(t, p > 0.3))
        assert row["specificity"] == pytest.approx(sk.recall_score(t, p > 0.3, pos_label=0))
        assert row["auroc"] == pytest.approx(sk.roc_auc_score(t, p), abs=1e-6)
        assert row["average_precision"] == pytest.approx(sk.average_precision_score(t, p), abs=1e-6)
    keep = y >= 0
    assert got["accuracy"] == pytest.approx(float(((z.sigmoid() > 0.3) == y)[keep].double().mean()))
    briers = [sk.brier_score_loss(y[keep[:, c], c], z[keep[:, c], c].sigmoid()) for c in range(C)]
    weights = keep.sum(0) / keep.sum()
    assert got["brier"] == pytest.approx(float((torch.tensor(briers) * weights).sum()), abs=1e-6)


@pytest.mark.parametrize("curves", ["exact", "histogram", "none"])
def test_nothing_at_all_is_nan(curves):
    report = imbloss.ImbalanceReport(3, curves=curves, scores="logits", train_counts=torch.tensor([200, 50, 5]))
    report.update(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    report.update(torch.zeros(2, 3), torch.full((2,), -100))
    assert all(value.isnan() for value in report.compute().values())
    assert "Without samples, in no average: 0, 1, 2." in report.report()
    assert report.to_dict()["worst_class"] is None
    report.plot()
    assert all(limits.isnan().all() for limits in report.bootstrap(5).values())


@pytest.mark.parametrize("curves", ["exact", "histogram"])
def test_one_class_alone(curves):
    report = imbloss.ImbalanceReport(3, ["a", "b", "c"], curves=curves, scores="logits")
    report.update(torch.eye(3), torch.tensor([1, 1, 1]))
    got = report.compute()
    assert got["accuracy"] == got["balanced_accuracy"] == got["worst_recall"] == pytest.approx(1 / 3)
    assert got["auroc"].isnan() and got["average_precision"] == 1
    assert "Without samples, in no average: a, c." in report.report()


@pytest.mark.parametrize("curves", ["exact", "histogram"])
def test_nan_scores_are_missed_and_said(curves):
    z, y = data()
    z[5, 0] = torch.nan
    report = fed(z, y, curves=curves, scores="logits")
    got = report.compute()
    assert all(got[name].isnan() for name in ("auroc", "average_precision", "ece", "brier"))
    hits = int((z.argmax(1) == y).sum()) - int(y[5] == 0)
    assert float(got["accuracy"]) == pytest.approx(hits / len(y))
    assert "There are NaN among the scores" in report.report()
    assert report.to_dict()["confusion"][int(y[5])][C] == 1


def test_updates_keep_copies():
    z, y = data()
    report = fed(z, y)
    before, kept = report.to_dict(), (z.clone(), y.clone())
    z.zero_(), y.zero_()
    report._computed = None
    assert report.to_dict() == before
    assert not torch.equal(kept[0], z)


def test_a_report_is_pickled_and_copied_without_its_blocks():
    z, y = data()
    report = fed(z, y)
    pickled = pickle.dumps(report)
    assert len(pickled) < 100_000  # of 8 kB of scores
    more = fed(torch.cat([z, z[:50]]), torch.cat([y, y[:50]])).compute()["auroc"]
    for again in (pickle.loads(pickled), copy.deepcopy(report)):
        again.update(z[:50], y[:50])
        assert torch.equal(report.compute()["auroc"], fed(z, y).compute()["auroc"])
        assert torch.equal(again.compute()["auroc"], more)
    report.reset()
    report.update(z, y)
    assert torch.equal(report.compute()["auroc"], fed(z, y).compute()["auroc"])


def test_equal_rows_are_ties():
    """Wherever in a batch they are."""
    z = torch.randn(1, 7).expand(301, 7)
    report = fed(z, torch.arange(301) % 7, parts=(1, 50, 8), classes=7)
    assert (report.findings()["classes"]["auroc"] == 0.5).all()


def test_the_report_prints_rows_averages_and_numbers():
    text = fed(*data(), class_names=list("abcde"), train_counts=torch.tensor([500, 50, 20, 5, 1])).report(digits=4)
    lines = [line.split() for line in text.splitlines() if line]
    assert lines[0] == ["pre", "rec", "spe", "f1", "geo", "iba", "auroc", "ap", "sup"]
    assert [line[0] for line in lines[1:9]] == [*"abcde", "macro", "micro", "weighted"]
    assert "few-shot accuracy" in text and "Brier score" in text
    precision = sk.precision_score(data()[1], data()[0].argmax(1), average=None)
    assert lines[1][1] == f"{precision[0]:.4f}"


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_plots_have_bars_ordered_by_frequency_confusion_and_curves(task, tmp_path):
    z, y = data(classes=2 if task == "binary" else C)
    if task == "binary":
        z = z[:, 1]
    if task == "multilabel":
        y = (torch.rand(z.shape) < 0.3).long()
    classes = 2 if task == "binary" else C
    report = fed(z, y, classes=classes, task=task, train_counts=torch.arange(1, classes + 1))
    figure, axes = report.plot()
    ticks = [text.get_text() for text in axes[0, 0].get_xticklabels()]
    assert ticks == [f"{c}\nn = {c + 1}" for c in reversed(range(classes))]
    assert len(axes[1, 0].lines) == classes and len(axes[1, 1].lines) == classes + 1
    figure.savefig(tmp_path / "report.png")
    for line, c in zip(axes[1, 1].lines, reversed(range(classes)), strict=False):
        area = np.trapezoid(line.get_ydata(), line.get_xdata())
        assert area == pytest.approx(report.to_dict()["classes"][str(c)]["auroc"], abs=1e-6)


# ---- bootstrap ---------------------------------------------------------------------------------------------------
def test_bootstrap_intervals_are_those_of_resampling():
    """Cells drawn together, samples drawn one by one, and a loop over scikit-learn give the same intervals."""
    z, y = data(n=300)
    report = fed(z, y)
    cells, samples = report.bootstrap(1000), report.bootstrap(1000, areas=True)
    generator = np.random.default_rng(5)
    by_hand = {"balanced_accuracy": [], "macro_f1": [], "auroc": []}
    p, t = z.double().softmax(1).numpy(), y.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(300):
            rows = generator.integers(0, len(t), len(t))
            answer = p[rows].argmax(1)
            by_hand["balanced_accuracy"].append(sk.balanced_accuracy_score(t[rows], answer))
            by_hand["macro_f1"].append(sk.f1_score(t[rows], answer, average="macro"))
            by_hand["auroc"].append(np.mean([sk.roc_auc_score(t[rows] == c, p[rows, c]) for c in range(C)]))
    for name, values in by_hand.items():
        limits = np.nanquantile(values, [0.025, 0.975])
        width = limits[1] - limits[0]
        for got in [samples] if name == "auroc" else [cells, samples]:
            assert np.abs(got[name].numpy() - limits).max() < 0.25 * width, name
    assert cells["recall_per_class"].shape == (C, 2)


def test_a_replicate_is_a_weighted_sample():
    z, y = data(n=50)
    times = next(bootstrap.draws(torch.ones(50, dtype=torch.int64), 20, 3))
    assert (times.sum(1) == 50).all()
    for c in range(C):
        auroc, precision = bootstrap.areas(times, z[:, c], y == c)
        for b in range(20):
            want = ranking.auroc_and_average_precision(z, y, times[b])
            close(auroc[b], want[0][c], 1e-10)
            close(precision[b], want[1][c], 1e-10)
    close(bootstrap.counts_of_cells(times, y, z.argmax(1), C).hit[4],
          ours.counts(z, y, num_classes=C, sample_weight=times[4]).hit)  # fmt: skip


def test_a_bootstrap_repeats_and_narrows():
    z, y = data(n=2000)
    report, small = fed(z, y), fed(z[:100], y[:100])
    first, second = report.bootstrap(200), report.bootstrap(200)
    width = {name: float(v[1] - v[0]) for name, v in first.items() if v.dim() == 1}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["accuracy"], report.bootstrap(200, seed=1)["accuracy"])
    low, high = small.bootstrap(200)["accuracy"]
    assert high - low > 2 * width["accuracy"]
    narrow = report.bootstrap(200, confidence=0.5)["accuracy"]
    assert first["accuracy"][0] < narrow[0] < narrow[1] < first["accuracy"][1]


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_bootstrap_of_other_tasks_surrounds_the_value(task):
    z, y = data(classes=2 if task == "binary" else C)
    weight = torch.rand(len(y))
    if task == "binary":
        z = z[:, 1]
    else:
        y = torch.where(torch.rand(z.shape) < 0.05, -100, (torch.rand(z.shape) < 0.3).long())
    report = fed(z, y, classes=2 if task == "binary" else C, task=task, weight=weight)
    limits, values = report.bootstrap(200, areas=True), report.compute()
    for name, value in values.items():
        low, high = limits[name]
        assert name in ("ece", "worst_recall") or low <= value <= high, name


# ---- errors ------------------------------------------------------------------------------------------------------
Z, Y = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
BAD = {
    "task": (lambda: imbloss.ImbalanceReport(3, task="both"), ValueError, "expected task among .* but got 'both'"),
    "one class": (lambda: imbloss.ImbalanceReport(1), ValueError, "expected num_classes >= 2 .*but got 1"),
    "binary": (lambda: imbloss.ImbalanceReport(3, task="binary"), ValueError, "expected num_classes=2"),
    "auto": (lambda: imbloss.ImbalanceReport(3, curves="histogram"), ValueError, "expected scores among logits, prob"),
    "names": (lambda: imbloss.ImbalanceReport(3, ["a"]), ValueError, "expected 3 class_names, but got 1"),
    "counts": (
        lambda: imbloss.ImbalanceReport(3, train_counts=torch.tensor([1, 2])), ValueError,
        r"expected train_counts of shape \(3,\), but got \(2,\)",
    ),
    "few": (lambda: imbloss.ShotAccuracy(2, torch.tensor([1, 2]), few=200), ValueError, "expected few in"),
    "list": (lambda: fed([[0.0]], Y, classes=3), TypeError, "expected preds to be a tensor, but got list"),
    "classes": (lambda: fed(Y, Y, classes=3), TypeError, "expected preds to be a tensor of a floating dtype"),
    "shape": (lambda: fed(Z[:, :2], Y, classes=3), ValueError, r"expected preds of shape \(4, 3\), but got \(4, 2\)"),
    "one score": (lambda: fed(Z[:, 0], Y % 2, classes=2), ValueError, "or task='binary', but got"),
    "target": (lambda: fed(Z, Y + 1, classes=3), IndexError, r"expected target in \[0, 3\) .* but got 3 at index 2"),
    "negative": (lambda: fed(Z, Y - 1, classes=3), IndexError, r"expected target in \[0, 3\) .* but got -1 at index 0"),
    "float target": (lambda: fed(Z, Y.float(), classes=3), TypeError, "expected labels to be a tensor of an integer"),
    "answer": (lambda: ours.counts(Y + 1, Y, 3), IndexError, r"expected preds in \[0, 3\), but got 3"),
    "label": (
        lambda: fed(Z, Y[:, None] + torch.zeros(4, 3).long(), classes=3, task="multilabel"), ValueError,
        "expected target of 0, 1 or ignore_index=-100, but got 2",
    ),
    "weight": (
        lambda: fed(Z, Y, classes=3, weight=torch.tensor([1, 1, -1, 1])), ValueError,
        "expected sample_weight >= 0 and finite, but got -1.0 at index 2",
    ),
    "weights": (
        lambda: ours.auroc(Z, Y, sample_weight=torch.ones(3)), ValueError,
        r"expected sample_weight of shape \(4,\), but got \(3,\)",
    ),
    "probabilities": (lambda: ours.brier_score(Z + 1, Y), ValueError, "expected probabilities in .* that sum"),
    "average": (lambda: ours.auroc(Z, Y, average="micro"), ValueError, "expected average among .* but got 'micro'"),
    "scale": (
        lambda: imbloss.GeometricMean(2).update(torch.rand(3), torch.tensor([0, 1, 1])), ValueError,
        "expected scores among .* for one score a target, but got None",
    ),
    "g-mean": (lambda: imbloss.GeometricMean(3, average="binary"), ValueError, "expected two classes"),
    "areas": (
        lambda: fed(Z, Y, classes=3, curves="none").bootstrap(5, areas=True), ValueError,
        "expected curves='exact' to resample areas",
    ),
    "confidence": (lambda: fed(Z, Y, classes=3).bootstrap(5, confidence=1), ValueError, "expected confidence in"),
    "weighted": (
        lambda: fed(Z, Y, classes=3, curves="none", weight=torch.rand(4)).bootstrap(5), ValueError,
        "expected curves='exact' to resample weighted samples",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_named(bad):
    call, error, message = BAD[bad]
    with pytest.raises(error, match=message):
        call()


def test_importing_imbloss_imports_no_extra():
    code = "import sys, imbloss; print([m for m in ('torchmetrics', 'matplotlib', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
    code = "import sys; sys.modules['torchmetrics'] = None; import imbloss; imbloss.ImbalanceReport"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "imbloss.metrics needs its extra: pip install 'imbloss[metrics]'" in result.stderr
    assert {"ImbalanceReport", "focal_loss"} <= set(dir(imbloss))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = imbloss.nothing
