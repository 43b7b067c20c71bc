"""The loss test as a grid: samplings, augmentations, going on after a kill, what is real, the page."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from imbloss.cli import app
from imbloss.lab import compare, load
from imbloss.lab.arms import Arm
from imbloss.lab.augmentations import AUGMENTATIONS
from imbloss.lab.compare import recommendation, run_arms, summary
from imbloss.lab.methods import METHODS
from imbloss.lab.report import write_report
from imbloss.lab.samplings import SAMPLINGS, Schedule
from imbloss.lab.scores import SCORES, confusion_matrix, scores
from imbloss.lab.significance import joint_answers, paired_differences

QUICK = {"model": "linear", "seeds": 2, "epochs": 2}


def strip_times(results):
    return [{name: value for name, value in run.items() if name != "seconds"} for run in results["runs"]]


# ---- arms --------------------------------------------------------------------------------------------------------
def test_names_of_arms():
    for name in ("focal", "focal+balanced", "focal+remix", "focal+smote+cmo"):
        assert Arm.of(name).name == name
    assert Arm.of("focal+remix+smote") == Arm.of("focal+smote+remix")
    assert Arm.of("adjusted_cross_entropy+over").trained_as == Arm.of("cross_entropy+over")
    names = [*METHODS, *list(SAMPLINGS)[1:], *list(AUGMENTATIONS)[1:]]
    assert len(set(names)) == len(names)  # else a name would have two meanings


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_samplings(sampling):
    data = load("digits", imbalance_ratio=10)
    schedule = Schedule(data, SAMPLINGS[sampling], seed=0, epochs=3)
    orders = list(schedule)
    assert len(orders) == 3 and not torch.equal(orders[0], orders[1])
    assert {len(order) for order in orders} == {len(data.y_train)}  # no method trains longer than another
    seen = torch.bincount(schedule.data.y_train[torch.cat(orders)], minlength=10).double()
    counts = schedule.counts.double()
    # the counts that a loss is told are what training sees
    assert (seen - counts / counts.sum() * seen.sum()).abs().max() <= 4.5 * seen.max().sqrt()
    if sampling in ("balanced", "over", "under", "smote", "rose"):
        assert counts.max() / counts.min() < 1.001
    again = Schedule(data, SAMPLINGS[sampling], seed=0, epochs=3)
    assert torch.equal(torch.cat(orders), torch.cat(list(again)))
    assert torch.equal(schedule.data.x_train, again.data.x_train)
    assert schedule.data.x_train.shape[1:] == data.x_train.shape[1:] and schedule.data.x_train.dtype == torch.float32


def test_where_classes_are_alike_nothing_is_left_to_correct():
    methods = [
        f"{loss}{sampling}" for sampling in ("", "+sqrt", "+balanced") for loss in ("cross_entropy", "balanced_softmax")
    ]
    accuracy = {run["method"]: run["scores"]["accuracy"] for run in compare(methods=methods, seeds=1, epochs=8)["runs"]}
    assert accuracy["cross_entropy+balanced"] == accuracy["balanced_softmax+balanced"]
    assert accuracy["cross_entropy+sqrt"] < accuracy["balanced_softmax+sqrt"]
    assert accuracy["cross_entropy"] + 0.1 < accuracy["cross_entropy+balanced"]


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if "image" in AUGMENTATIONS[name].kinds])
def test_augmentations_of_images(name):
    data = load("digits", imbalance_ratio=10)
    batch = torch.arange(len(data.y_train))
    before = data.x_train.clone()
    x, y = AUGMENTATIONS[name].make(data, 0)(batch)
    assert x.shape == data.x_train.shape and (name == "none") == torch.equal(x, data.x_train)
    assert torch.equal(data.x_train, before)
    assert y.is_floating_point() == AUGMENTATIONS[name].soft
    again, _ = AUGMENTATIONS[name].make(data, 0)(batch)
    assert torch.equal(x, again)


def texts(tmp_path):
    lines = [f"oil\toil prices rose to {i} dollars a barrel" for i in range(40)]
    lines += [f"ship\ta port strike delayed {i} vessels" for i in range(8)]
    (tmp_path / "texts.txt").write_text("\n".join(lines))
    return str(tmp_path / "texts.txt")


def test_texts_are_learnt_and_augmented(tmp_path, monkeypatch):
    monkeypatch.setattr("imbloss.data.text._wordnet", lambda: lambda word: ["crude"] if word == "oil" else [])
    methods = ["cross_entropy", "cross_entropy+eda", "focal+balanced+aeda"]
    results = compare(
        texts(tmp_path), methods=methods, imbalance_ratio=None, model=None, seeds=1, epochs=20, batch_size=8
    )
    assert results["settings"]["model"] == "bag" and results["data"]["classes"] == ["oil", "ship"]
    assert all(run["scores"]["accuracy"] > 0.9 for run in results["runs"])


def test_a_model_of_ones_own():
    results = compare(methods=["focal"], imbalance_ratio=10, **QUICK | {"model": "imbloss.lab.models:Linear"})
    assert strip_times(results) == strip_times(compare(methods=["focal"], imbalance_ratio=10, **QUICK))


# ---- going on ----------------------------------------------------------------------------------------------------
def test_finished_runs_are_kept(tmp_path, monkeypatch):
    methods = ["cross_entropy", "focal"]
    whole = compare(methods=methods, **QUICK)
    assert strip_times(compare(methods=methods, cells=tmp_path, **QUICK)) == strip_times(whole)

    trained = []

    def counting(training, arms, seed):
        trained.append((arms[0].name, seed))
        return run_arms(training, arms, seed)

    monkeypatch.setattr(sys.modules["imbloss.lab.compare"], "run_arms", counting)
    assert strip_times(compare(methods=methods, cells=tmp_path, **QUICK)) == strip_times(whole) and not trained
    compare(methods=[*methods, "balanced_softmax"], cells=tmp_path, **QUICK | {"seeds": 3})  # more of the same
    assert sorted(trained) == [("balanced_softmax", s) for s in range(3)] + [("cross_entropy", 2), ("focal", 2)]

    trained.clear()
    (tmp_path / "focal-1.json").write_text('{"settings": {')  # half a file
    assert strip_times(compare(methods=methods, cells=tmp_path, **QUICK)) == strip_times(whole)
    assert trained == [("focal", 1)]
    trained.clear()
    compare(methods=methods, cells=tmp_path, **QUICK | {"epochs": 3})  # other settings: nothing is taken over
    assert len(trained) == 4


def test_a_killed_test_goes_on(tmp_path):
    command = [
        sys.executable, "-m", "imbloss.cli", "compare", "--model", "linear", "--epochs", "8", "--seeds", "3",
        "--loss", "cross_entropy,focal", "--out", str(tmp_path),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    cells = tmp_path / "cells"
    finish_by = time.monotonic() + 120
    while len(list(cells.glob("*.json")) if cells.exists() else []) < 2 and time.monotonic() < finish_by:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert len(kept) >= 2
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # none was made again
    assert len(json.loads((tmp_path / "results.json").read_text())["runs"]) == 6


def test_several_jobs_give_the_same():
    options = QUICK | {"methods": ["cross_entropy", "focal+balanced"]}
    steps = []
    parallel = compare(jobs=2, progress=lambda name, seed: steps.append((name, seed)), **options)
    assert sorted(steps) == [(name, seed) for name in options["methods"] for seed in (0, 1)]
    alone = compare(**options)
    assert [run["confusion"] for run in parallel["runs"]] == [run["confusion"] for run in alone["runs"]]
    with pytest.raises(ValueError, match="diverged"):
        compare(jobs=2, **options | {"learning_rate": 1e30, "model": "mlp"})


# ---- what is real ------------------------------------------------------------------------------------------------
def answers(n, classes, skill, generator):
    truth = np.arange(n) % classes
    wrong = (truth + generator.integers(1, classes, n)) % classes
    return truth, np.where(generator.random(n) < skill, truth, wrong)


def test_the_bootstrap_is_the_plain_one():
    """Drawing samples one by one gives the same interval."""
    generator = np.random.default_rng(0)
    pairs = []
    for _ in range(2):
        truth, baseline = answers(300, 3, 0.6, generator)
        _, method = answers(300, 3, 0.7, generator)
        pairs.append((truth, baseline, method))
    found = paired_differences([joint_answers(*map(torch.from_numpy, pair), 3) for pair in pairs], 3)

    def difference(rows):
        of = []
        for (truth, baseline, method), chosen in zip(pairs, rows, strict=True):
            one, other = (scores(confusion_matrix(truth[chosen], a[chosen], 3)) for a in (baseline, method))
            of.append([other[name] - one[name] for name in SCORES])
        return np.mean(of, axis=0)

    observed = difference([np.arange(300)] * 2)
    drawn = np.array([difference(generator.integers(0, 300, (2, 300))) for _ in range(1000)])
    limits = np.quantile(drawn, [0.025, 0.975], axis=0)
    for i, name in enumerate(SCORES):
        assert found[name]["difference"] == pytest.approx(observed[i])
        width = limits[1, i] - limits[0, i]
        assert found[name]["low"] == pytest.approx(limits[0, i], abs=0.1 * width)
        assert found[name]["high"] == pytest.approx(limits[1, i], abs=0.1 * width)


def test_what_is_called_real():
    generator = np.random.default_rng(1)
    real = 0
    for _ in range(40):  # equally good methods: about one in twenty is called different
        truth, baseline = answers(200, 4, 0.7, generator)
        _, method = answers(200, 4, 0.7, generator)
        joint = joint_answers(*map(torch.from_numpy, (truth, baseline, method)), 4)
        real += paired_differences([joint], 4)["accuracy"]["real"]
    assert real <= 6
    truth, baseline = answers(500, 4, 0.6, generator)
    _, better = answers(500, 4, 0.8, generator)
    joint = joint_answers(*map(torch.from_numpy, (truth, baseline, better)), 4)
    found = paired_differences([joint], 4)["balanced_accuracy"]
    assert found["real"] and found["low"] > 0
    same = paired_differences([joint_answers(*map(torch.from_numpy, (truth, baseline, baseline)), 4)], 4)
    assert all(
        score["difference"] == score["low"] == score["high"] == 0 and not score["real"] for score in same.values()
    )


def test_the_recommendation():
    results = compare(methods=["cross_entropy", "balanced_softmax", "focal"], seeds=2, epochs=30)
    best = summary(results)["balanced_softmax"]["balanced_accuracy"][0]
    assert best > summary(results)["cross_entropy"]["balanced_accuracy"][0]
    text = recommendation(results, "balanced_accuracy")
    assert text.startswith("By balanced accuracy, take balanced softmax: +")
    alone = compare(methods=["cross_entropy"], **QUICK)
    assert recommendation(alone, "macro_f1").startswith("By macro F1, nothing beats cross entropy")
    assert results["differences"].keys() == {"balanced_softmax", "focal"} and alone["differences"] == {}
    assert json.loads(json.dumps(results)) == results


# ---- the page ----------------------------------------------------------------------------------------------------
def test_the_page_stands_alone(tmp_path):
    results = compare(methods=["cross_entropy", "focal+balanced"], shift=True, **QUICK)
    results["settings"]["source"] = "<b>data</b>.csv"
    write_report(results, tmp_path / "report.html", metric="g_mean", command="imbloss compare --out 'a b'")
    page = (tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page) and "<script" not in page and "<b>data" not in page
    assert page.count("data:image/png;base64,") == 3 and 'name="viewport"' in page
    assert "focal, gamma 2 + balanced draws" in page and "imbloss compare --out" in page
    assert "Shifted test sets" in page and recommendation(results, "g_mean").split(",")[0] in page
    from html.parser import HTMLParser

    class Balanced(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Balanced()
    parser.feed(page)
    assert parser.open == []


def test_the_command_takes_a_grid(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["compare", "--out", str(tmp_path), *arguments])

    grid = "--loss", "cross_entropy,focal", "--sampling", "none,balanced", "--augment", "none", "--augment", "remix"
    done = run(*grid, "--seeds", "1", "--epochs", "1", "--model", "linear", "--metric", "g_mean")
    assert done.exit_code == 0, done.stderr
    methods = json.loads((tmp_path / "results.json").read_text())["settings"]["methods"]
    assert len(methods) == 8 and methods[0] == "cross_entropy" and methods[-1] == "focal+balanced+remix"
    assert "By G-mean" in done.stdout and (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    for arguments, message in (
        (["--loss", "focl"], "expected methods among"),
        (["--sampling", "smoote"], "expected at most one sampling and one augmentation"),
        (["--metric", "luck"], "expected metric among"),
        (["--preset", "essay"], "expected preset among notebook, but got 'essay'"),
        (["--preset", "notebook", "--data", "digits"], "for profile notebook"),
    ):
        failed = run(*arguments)
        assert failed.exit_code == 2 and message in failed.stderr and failed.stderr.count("\n") == 1
