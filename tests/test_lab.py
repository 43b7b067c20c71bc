"""The loss test: its data, its fairness, its numbers, its command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics

import imbloss
from imbloss.lab import DataError, compare, load
from imbloss.lab.compare import CORRECTIONS, SHIFTS, shift_summary, summary, train
from imbloss.lab.data import long_tailed_counts
from imbloss.lab.methods import METHODS
from imbloss.lab.models import CNN
from imbloss.lab.scores import confusion_matrix, evaluate, scores

DOCS = Path(__file__).parents[1] / "docs"
DOCUMENTED_SCORES = ["accuracy", "macro_f1", "g_mean", "worst_recall"]


def test_digits_are_long_tailed_and_tested_in_balance():
    data = load("digits", imbalance_ratio=100, seed=3)
    counts = data.train_counts.tolist()
    assert counts == long_tailed_counts(10, counts[0], 100) == sorted(counts, reverse=True)
    assert data.train_counts[0] / data.train_counts[-1] >= 100
    assert data.test_counts.unique().numel() == 1 and data.test_counts[0] >= 50
    assert data.x_train.shape[1:] == (1, 8, 8) and data.x_train.dtype == torch.float32
    rows = {tuple(x.flatten().tolist()) for x in data.x_train}
    assert not any(tuple(x.flatten().tolist()) in rows for x in data.x_test)  # no sample on both sides


def test_the_seed_decides_the_split():
    first, same, other = (load("digits", imbalance_ratio=10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.x_train, same.x_train) and not torch.equal(first.x_train, other.x_train)


def write(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_a_file_is_split_as_it_is_or_thinned(tmp_path):
    generator = np.random.default_rng(0)
    y = np.repeat([0, 1, 2], [200, 100, 20])
    file = write(tmp_path / "a.npz", X=generator.normal(5, 3, (320, 4)), y=y)
    data = load(file)
    assert data.train_counts.tolist() == [140, 70, 14] and data.test_counts.tolist() == [60, 30, 6]
    assert data.x_train.mean(0).abs().max() < 1e-5 and (data.x_train.std(0) - 1).abs().max() < 1e-2
    thinned = load(file, imbalance_ratio=7)
    assert thinned.train_counts.tolist() == [14, 5, 2] and thinned.test_counts.tolist() == [6, 6, 6]


X, Y = np.zeros((6, 2)), np.array([0, 0, 0, 1, 1, 1])
BAD_FILES = {
    "no y": ({"X": X}, "expected arrays X and y in .*, but got X"),
    "strings": ({"X": X.astype(str), "y": Y}, "expected X of numbers"),
    "one dimension": ({"X": X[:, 0], "y": Y}, r"expected X of numbers, of shape .* but got float64 of shape \(6,\)"),
    "float labels": ({"X": X, "y": Y * 1.0}, "expected y of integers"),
    "lengths": ({"X": X, "y": Y[:5]}, "expected as many rows of X as of y, .* but got 6 and 5"),
    "empty": ({"X": X[:0], "y": Y[:0]}, "but got 0 and 0"),
    "nan": ({"X": np.where(np.arange(6)[:, None] == 4, np.nan, X), "y": Y}, "expected X to be finite .* row 4 is not"),
    "huge": ({"X": X + 1e300, "y": Y}, "expected X to be finite and below 1e30, but row 0 is not"),
    "huge label": ({"X": X, "y": Y * 10**11}, "expected y from 0 to C - 1, but got 100000000000"),
    "unsigned label": (
        {"X": X, "y": (Y - 1).astype(np.uint64)},
        "expected y from 0 to C - 1, but got 1844674407370955",
    ),
    "no pixels": ({"X": np.zeros((6, 1, 0, 4)), "y": Y}, r"expected X of numbers, .* of shape \(6, 1, 0, 4\)"),
    "negative label": ({"X": X, "y": Y - 1}, "expected y from 0 to C - 1, but got -1"),
    "labels from 1": ({"X": X, "y": Y + 1}, "expected each class of y at least twice, the first being 0, but class 0"),
    "one class": ({"X": X, "y": Y * 0}, "expected at least two classes in y, but got one"),
    "objects": ({"X": np.array([None] * 6), "y": Y}, "to be an .npz file of plain arrays"),
}


def imbloss_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "imbloss.cli", *arguments], capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("bad", BAD_FILES)
def test_bad_files_are_named(bad, tmp_path):
    arrays, message = BAD_FILES[bad]
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "bad.npz", **arrays))


def test_a_bad_file_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "text.npz").write_text("not a zip file")
    np.save(tmp_path / "single.npy", X)
    for data in ("missing.npz", str(tmp_path), str(tmp_path / "text.npz"), str(tmp_path / "single.npy")):
        result = imbloss_command("compare", "--data", data, "--out", str(tmp_path / "out"))
        assert result.returncode == 2 and result.stdout.strip() == ""
        assert result.stderr.startswith("imbloss: expected") and result.stderr.count("\n") == 1


def test_scores_equal_scikit_learn():
    generator = np.random.default_rng(0)
    truth = np.arange(300) % 5
    predicted = np.where(generator.random(300) < 0.6, truth, generator.integers(0, 4, 300))
    got = scores(confusion_matrix(truth, predicted, 5))
    recall = metrics.recall_score(truth, predicted, average=None)
    assert got["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert got["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
    assert got["macro_f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))
    assert got["g_mean"] == pytest.approx(np.prod(recall) ** 0.2)
    assert got["worst_recall"] == pytest.approx(recall.min())


def test_ranking_and_calibration_equal_scikit_learns():
    logits, truth = torch.randn(300, 4), torch.arange(300) % 4
    got, p = evaluate(logits, truth), logits.double().softmax(1)
    assert got["scores"]["auroc"] == pytest.approx(metrics.roc_auc_score(truth, p, multi_class="ovr"), abs=1e-6)
    one_hot = np.eye(4)[truth]
    assert got["scores"]["average_precision"] == pytest.approx(metrics.average_precision_score(one_hot, p), abs=1e-6)
    assert got["scores"]["brier"] == pytest.approx(metrics.brier_score_loss(truth, p), abs=1e-6)
    assert got["scores"] | scores(np.array(got["confusion"])) == got["scores"]


def test_every_method_starts_alike_and_sees_the_same_batches():
    """A loss scaled by 1 in another guise must give the very same model."""
    data = load("digits", imbalance_ratio=20)
    options = {"model": "mlp", "epochs": 2, "batch_size": 32, "learning_rate": 1e-3, "seed": 5}
    plain = train(data, imbloss.CrossEntropy(), **options)
    torch.manual_seed(99)  # what happened before must not matter
    focal = train(data, imbloss.FocalLoss(gamma=0.0), **options)
    other = train(data, imbloss.CrossEntropy(), **{**options, "seed": 6})
    for a, b, c in zip(plain.parameters(), focal.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_prior_correction_is_most_of_the_gain():
    """The known result on these data: balanced softmax far ahead, the focal factor alone little."""
    results = compare(methods=["cross_entropy", "focal", "balanced_softmax", "adjusted_cross_entropy"], seeds=3)
    table = {name: {score: mean for score, (mean, _) in row.items()} for name, row in summary(results).items()}
    assert 0.65 < table["cross_entropy"]["accuracy"] < 0.76 and table["cross_entropy"]["worst_recall"] < 0.1
    assert 0.68 < table["focal"]["accuracy"] < 0.79
    assert table["balanced_softmax"]["accuracy"] > table["focal"]["accuracy"] + 0.08
    assert table["balanced_softmax"]["worst_recall"] > 0.4
    assert table["adjusted_cross_entropy"]["accuracy"] > table["cross_entropy"]["accuracy"] + 0.08
    assert json.loads(json.dumps(results)) == results


@pytest.mark.parametrize("size", [8, 28, 32])
def test_the_cnn_takes_images_of_any_size(size):
    assert CNN((3, size, size), 7)(torch.zeros(2, 3, size, size)).shape == (2, 7)


def test_the_cnn_wants_images(tmp_path):
    generator = np.random.default_rng(0)
    file = write(tmp_path / "table.npz", X=generator.normal(size=(40, 3)), y=np.arange(40) % 2)
    with pytest.raises(ValueError, match=r"expected images of shape .* for the cnn, but got \(3,\)"):
        compare(file, imbalance_ratio=None, model="cnn", methods=["focal"])
    with pytest.raises(ValueError, match="expected images of at least 4 x 4 pixels for the cnn, but got 3 x 8"):
        CNN((1, 3, 8), 2)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"methods": ["lade2"]}, "expected methods among .*, but got 'lade2'"),
        ({"model": "vit"}, "expected model among mlp, cnn, linear, bag or module:function, but got 'vit'"),
        ({"model": "torch.nn:Cat"}, "expected model 'torch.nn:Cat' to be importable, but: "),
        ({"model": "bag"}, "expected a model for image data, but got 'bag'"),
        ({"methods": ["focal+none"]}, r"expected at most one sampling and one augmentation .* but got 'focal\+none'"),
        ({"methods": ["focal+smote+rose"]}, "expected at most one sampling and one augmentation"),
        ({"methods": ["lade+remix"]}, "expected a loss of target probabilities with remix, but got lade"),
        ({"methods": ["focal+eda"]}, "expected eda with text data, but got image data"),
        ({"profile": "flat"}, "expected profile among exp, step, notebook, but got 'flat'"),
        ({"jobs": 0}, "expected jobs > 0 and finite, but got 0"),
        ({"device": "cuda:99"}, "expected device to be there, but got 'cuda:99'"),
        ({"epochs": 0}, "expected epochs > 0 and finite, but got 0"),
        ({"learning_rate": float("inf")}, "expected learning_rate > 0 and finite, but got inf"),
        ({"learning_rate": 1e30, "seeds": 1}, r"training with cross_entropy diverged \(seed 0\)"),
        ({"methods": ["focal", "focal"]}, "expected methods once each, but got focal, focal"),
        ({"imbalance_ratio": 0.5}, "expected imbalance_ratio >= 1 and finite, but got 0.5"),
    ],
)
def test_bad_settings_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        compare(**keywords)


def test_the_command_writes_results_and_plots(tmp_path):
    out = tmp_path / "deep" / "out"
    result = imbloss_command(
        "compare", "--seeds", "2", "--epochs", "3", "--loss", "focal", "--model", "cnn", "--out", str(out)
    )
    assert result.returncode == 0, result.stderr
    assert "focal, gamma 2" in result.stdout and "worst" in result.stdout
    assert "AUROC" in result.stdout and "Brier" in result.stdout
    written = json.loads((out / "results.json").read_text())
    assert [(run["method"], run["seed"]) for run in written["runs"]] == [("focal", 0), ("focal", 1)]
    assert written["versions"]["imbloss"] == imbloss.__version__
    plots = {"recall.png", "confusion.png", "calibration.png"}
    assert plots | {"results.json", "report.html", "cells"} == {p.name for p in out.iterdir()}
    assert (out / "recall.png").read_bytes().startswith(b"\x89PNG")


def test_every_method_trains_and_predicts():
    results = compare(seeds=1, epochs=1)
    assert [run["method"] for run in results["runs"]] == list(METHODS)
    for run in results["runs"]:
        assert np.sum(run["confusion"]) == sum(results["data"]["test_counts"])
        assert all(0 <= value <= 1 for name, value in run["scores"].items() if name != "brier")
        assert 0 <= run["scores"]["brier"] <= 2 and np.sum(run["calibration"], axis=0)[0] == np.sum(run["confusion"])


def test_shifted_test_sets_are_long_tailed_and_corrected():
    methods = ["cross_entropy", "balanced_softmax", "adjusted_cross_entropy"]
    results = compare(methods=methods, seeds=2, epochs=30, shift=True)
    table = shift_summary(results)
    assert set(table) == {(name, correction) for name in methods for correction in CORRECTIONS}
    accuracy = lambda *key: np.array([mean for mean, _ in table[key].values()])  # noqa: E731
    plain = accuracy("cross_entropy", "none")
    assert (np.diff(plain) < 0).all()  # the further from the training set, the worse
    assert (accuracy("cross_entropy", "known") > plain).all()
    # corrected from either side, the scores are the same
    assert table["cross_entropy", "known"] == table["adjusted_cross_entropy", "known"]
    uniform = list(SHIFTS).index("1:1")
    assert accuracy("balanced_softmax", "known")[uniform] == accuracy("balanced_softmax", "none")[uniform]
    assert json.loads(json.dumps(results)) == results


def test_the_documented_tables_are_those_of_the_committed_results():
    page = (DOCS / "lade.md").read_text()
    results = json.loads((DOCS / "lade_results.json").read_text())
    assert results["settings"] == {
        "source": "digits", "methods": results["settings"]["methods"], "imbalance_ratio": 100.0, "seeds": 5,
        "model": "mlp", "epochs": 60, "batch_size": 64, "learning_rate": 1e-3,
    }  # fmt: skip
    documented = re.findall(r"--loss (\w+)", re.search(r"```\n(imbloss compare.*?)```", page, re.DOTALL)[1])
    assert documented == results["settings"]["methods"]
    for run in results["runs"]:  # the scores are those of the confusion matrices
        of_confusion = scores(np.array(run["confusion"]))
        assert of_confusion == pytest.approx({name: run["scores"][name] for name in of_confusion})
    rows = []
    for name, row in summary(results).items():
        cells = [f"{100 * row[score][0]:.1f} ± {100 * row[score][1]:.1f}" for score in DOCUMENTED_SCORES]
        rows.append(f"| {METHODS[name].title} | {' | '.join(cells)} |")
    for (name, correction), row in shift_summary(results).items():
        title = (
            METHODS[name].title + {"none": "", "known": " + known prior", "estimated": " + its estimate"}[correction]
        )
        rows.append(f"| {title} | {' | '.join(f'{100 * row[shift][0]:.1f}' for shift in SHIFTS)} |")
    table = [line for line in page.split("## What each term buys")[1].splitlines() if line.startswith("| ")]
    assert [line for line in table if not line.startswith("| |")] == rows


def test_the_version_is_shown():
    assert imbloss_command("--version").stdout.strip() == f"imbloss {imbloss.__version__}"
