"""Trains one model per method and seed and collects what each buys."""

import dataclasses
import functools
import json
import math
import os
import platform
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import imbloss
from imbloss import _C
from imbloss.lab.arms import Arm
from imbloss.lab.augmentations import plain
from imbloss.lab.data import Data, load, long_tailed_counts
from imbloss.lab.methods import METHODS, Method, for_test_prior
from imbloss.lab.models import default_model, make_model
from imbloss.lab.samplings import SAMPLINGS, Schedule
from imbloss.lab.scores import SCORES, evaluate
from imbloss.lab.significance import joint_answers, paired_differences


def train(
    data: Data,
    loss: nn.Module,
    *,
    model: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: str = "cpu",
    schedule: Schedule | None = None,
    augment: Callable[[Data, int], Callable[[Tensor], tuple[Tensor, Tensor]]] = plain,
) -> nn.Module:
    """A fresh model, trained with Adam. The seed alone decides its initial weights and its batches."""
    schedule = Schedule(data, SAMPLINGS["none"], seed, epochs) if schedule is None else schedule
    data = _on(schedule.data, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_model(model, data).to(device)
    loss = loss.to(device)
    batches = augment(data, seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for order in schedule:
        for batch in order.to(device).split(batch_size):
            optimizer.zero_grad()
            x, y = batches(batch)
            loss(network(x.to(device)), y).backward()
            optimizer.step()
    return network.eval()


def _on(data: Data, device: str) -> Data:
    tensors = ("x_train", "y_train", "x_test", "y_test")
    return dataclasses.replace(data, **{name: getattr(data, name).to(device) for name in tensors})


@torch.no_grad()
def predict(network: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([network(part) for part in x.split(4096)])


# Name -> ratio of the training set's most to its least frequent class in the test set: forward, uniform, backward.
SHIFTS = {"50:1": 50, "10:1": 10, "1:1": 1, "1:10": 1 / 10, "1:50": 1 / 50}
CORRECTIONS = ("none", "known", "estimated")


def shifted_accuracy(method: Method, predicted: Tensor, data: Data, counts: Tensor) -> dict[str, dict[str, float]]:
    """Accuracy on long-tailed parts of the test set, the classes in the training set's order: shift -> correction ->
    accuracy, where the scores are left as they are, corrected to the test set's prior, or to their own estimate of it.

    As table 2 of Hong et al. 2021 has it.
    """
    order = counts.argsort(descending=True, stable=True).tolist()
    accuracy = {}
    for name, ratio in SHIFTS.items():
        wanted = long_tailed_counts(len(order), int(data.test_counts.min()), max(ratio, 1 / ratio))
        wanted = wanted if ratio >= 1 else wanted[::-1]
        rows = torch.cat([(data.y_test == c).nonzero()[:n, 0] for c, n in zip(order, wanted, strict=True)])
        part, y = predicted[rows], data.y_test[rows]
        prior = torch.bincount(y, minlength=len(order)).double() / len(y)
        corrected = {
            "none": part,
            "known": for_test_prior(part, method, counts, prior),
            "estimated": for_test_prior(part, method, counts, None),
        }
        accuracy[name] = {c: float((corrected[c].argmax(1) == y).double().mean()) for c in CORRECTIONS}
    return accuracy


# ---- runs --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Training:
    """All that decides how a model comes out."""

    source: str
    target: str | None
    imbalance_ratio: float | None
    profile: str
    model: str
    epochs: int
    batch_size: int
    learning_rate: float
    device: str
    shift: bool

    def data(self, seed: int) -> Data:
        return _loaded(self.source, self.target, self.imbalance_ratio, self.profile, seed)


@functools.lru_cache(maxsize=2)
def _loaded(source: str, target: str | None, imbalance_ratio: float | None, profile: str, seed: int) -> Data:
    return load(source, target=target, imbalance_ratio=imbalance_ratio, profile=profile, seed=seed)


def run_arms(training: Training, arms: Sequence[Arm], seed: int) -> list[dict]:
    """Trains the model that these arms share, and has each read it: a run each, with the answers on the test set.

    Raises:
        ValueError: the model's outputs are not finite.
    """
    started = time.perf_counter()
    data, trained_as = training.data(seed), arms[0].trained_as
    schedule = Schedule(data, trained_as.of_samples, seed, training.epochs)
    network = train(
        data, trained_as.method.loss(schedule.counts), model=training.model, epochs=training.epochs,
        batch_size=training.batch_size, learning_rate=training.learning_rate, seed=seed, device=training.device,
        schedule=schedule, augment=trained_as.of_batches.make,
    )  # fmt: skip
    logits = predict(network, data.x_test.to(training.device)).cpu()
    if not logits.isfinite().all():
        raise ValueError(f"training with {arms[0].name} diverged (seed {seed}): the model's outputs are not finite")
    seconds = time.perf_counter() - started
    runs = []
    for arm in arms:
        predicted = arm.method.scores(logits, schedule.counts)
        run = {
            "method": arm.name,
            "seed": seed,
            "seconds": round(seconds, 3),
            **evaluate(predicted, data.y_test),
            "answers": predicted.argmax(1).tolist(),
        }
        if training.shift:
            run["shift"] = shifted_accuracy(arm.method, predicted, data, schedule.counts)
        runs.append(run)
    return runs


class Cells:
    """Finished runs, a file each: a test that was killed goes on where it was. Of other settings, none are found."""

    def __init__(self, folder: Path | None, training: Training) -> None:
        self.folder = folder
        if folder is not None:
            data = training.data(0)
            parts = (data.x_train, data.y_train, data.x_test, data.y_test)
            content = functools.reduce(lambda crc, part: zlib.crc32(part.numpy().tobytes(), crc), parts, 0)
            self._settings = dataclasses.asdict(training) | {"data": content, "imbloss": imbloss.__version__}
            folder.mkdir(parents=True, exist_ok=True)

    def _path(self, arm: Arm, seed: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{arm.name}-{seed}.json"

    def get(self, arm: Arm, seed: int) -> dict | None:
        if self.folder is None:
            return None
        try:
            cell = json.loads(self._path(arm, seed).read_text())
        except (OSError, ValueError):
            return None
        return cell["run"] if isinstance(cell, dict) and cell.get("settings") == self._settings else None

    def put(self, run: dict) -> None:
        if self.folder is not None:
            path = self._path(Arm.of(run["method"]), run["seed"])
            write_json(path, {"settings": self._settings, "run": run}, indent=None)


def _finished(training: Training, tasks: list[tuple[list[Arm], int]], jobs: int, progress: Callable) -> Iterator[dict]:
    """The runs of all tasks, as they end."""
    if jobs == 1 or len(tasks) <= 1:
        for arms, seed in tasks:
            progress(arms[0].name, seed)
            yield from run_arms(training, arms, seed)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    workers = min(jobs, len(tasks))
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        futures = {pool.submit(run_arms, training, arms, seed): (arms[0].name, seed) for arms, seed in tasks}
        try:
            for future in as_completed(futures):
                progress(*futures[future])
                yield from future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def compare(
    source: str = "digits",
    *,
    methods: Sequence[str] = tuple(METHODS),
    imbalance_ratio: float | None = 100.0,
    profile: str = "exp",
    target: str | None = None,
    model: str | None = "mlp",
    seeds: int = 5,
    epochs: int = 60,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    shift: bool = False,
    device: str = "cpu",
    jobs: int = 1,
    cells: Path | None = None,
    progress: Callable[[str, int], None] = lambda method, seed: None,
) -> dict:
    """The loss test.

    For each seed: a split of the data, initial weights and batches, the same for every method.

    Args:
        source: see :func:`imbloss.lab.load`; ``imbalance_ratio``, ``profile`` and ``target`` likewise.
        methods: names of :class:`imbloss.lab.arms.Arm`; the first is the baseline of all differences.
        model: see :func:`imbloss.lab.models.make_model`; None is the kind of data's own.
        seeds: number of repetitions, seeded 0, 1, ...
        shift: also test on long-tailed parts of the test set, for SHIFTS.
        device: where models are trained.
        jobs: processes that train at the same time, sharing the threads.
        cells: folder for finished runs, from which a test with the same settings goes on. None keeps none.
        progress: called before each training (with several jobs: after it).

    Returns:
        {"settings", "versions", "data", "runs", "differences"}, ready for JSON: a run has method, seed, scores,
        confusion matrix and bins of calibration; those of the other methods the "joint" answers with the baseline, of
        which the differences are made (:mod:`imbloss.lab.significance`); with `shift` also the accuracy for each test
        set and correction.

    Raises:
        DataError: the data cannot be used.
        ValueError: an unknown method or model, a number that is not positive, or a training that diverged.
    """
    arms = [Arm.of(name) for name in methods]
    if len(set(arms)) < len(arms) or not arms:
        raise ValueError(f"expected methods once each, but got {', '.join(methods) or 'none'}")
    numbers = {
        "seeds": seeds, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "jobs": jobs,
    }  # fmt: skip
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise ValueError(f"expected {name} > 0 and finite, but got {value}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"expected device to be there, but got {device!r}: {str(error).splitlines()[0]}") from error
    data = _loaded(source, target, imbalance_ratio, profile, 0)
    for arm in arms:
        arm.check(data.kind)
    model = default_model(data) if model is None else model
    make_model(model, data)
    training = Training(
        source, target, imbalance_ratio, profile, model, epochs, batch_size, learning_rate, device, shift
    )
    runs = _runs(training, arms, seeds, jobs, Cells(cells, training), progress)
    for run in runs:
        answers, base = torch.tensor(run["answers"]), torch.tensor(runs[run["seed"] * len(arms)]["answers"])
        if run["method"] != arms[0].name:
            run["joint"] = joint_answers(training.data(run["seed"]).y_test, base, answers, data.num_classes)
    for run in runs:
        del run["answers"]
    results = {
        "settings": {
            "source": data.name,
            "methods": [arm.name for arm in arms],
            "imbalance_ratio": imbalance_ratio,
            "seeds": seeds,
            "model": model,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "profile": profile,
            "device": device,
        },
        "versions": {
            "imbloss": imbloss.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "isa": _C.isa(),
        },
        "data": {
            "train_counts": data.train_counts.tolist(),
            "test_counts": data.test_counts.tolist(),
            "classes": list(data.classes),
        },
        "runs": runs,
    }
    return results | {"differences": differences(results)}


def _runs(
    training: Training, arms: list[Arm], seeds: int, jobs: int, cells: Cells, progress: Callable[[str, int], None]
) -> list[dict]:
    """In order of seeds, and of methods within a seed."""
    found: dict[tuple[str, int], dict] = {}
    tasks: dict[tuple[int, Arm], list[Arm]] = {}
    for seed in range(seeds):
        for arm in arms:
            run = cells.get(arm, seed)
            if run is None:
                tasks.setdefault((seed, arm.trained_as), []).append(arm)
            else:
                found[arm.name, seed] = run
    for run in _finished(training, [(arms, seed) for (seed, _), arms in tasks.items()], jobs, progress):
        cells.put(run)
        found[run["method"], run["seed"]] = run
    return [dict(found[arm.name, seed]) for seed in range(seeds) for arm in arms]


# ---- what the runs say -------------------------------------------------------------------------------------------
def summary(results: dict) -> dict[str, dict[str, tuple[float, float]]]:
    """Method -> score -> mean and standard deviation (n - 1) over seeds; the deviation of one seed is NaN."""
    table = {}
    for name in results["settings"]["methods"]:
        runs = [run["scores"] for run in results["runs"] if run["method"] == name]
        table[name] = {score: _mean_and_deviation([run[score] for run in runs]) for score in runs[0]}
    return table


def differences(results: dict) -> dict[str, dict]:
    """Method -> score -> its difference from the first method and whether that is real; see
    :func:`imbloss.lab.significance.paired_differences`."""
    classes = len(results["data"]["train_counts"])
    found = {}
    for name in results["settings"]["methods"][1:]:
        joints = [run["joint"] for run in results["runs"] if run["method"] == name]
        found[name] = paired_differences(joints, classes)
    return found


def recommendation(results: dict, metric: str) -> str:
    """In a sentence or two: what to take if `metric`, one of SCORES, counts."""
    methods = results["settings"]["methods"]
    table = summary(results)
    baseline, title = Arm.of(methods[0]).title, SCORES[metric]
    better = [name for name in methods[1:] if (d := results["differences"][name][metric])["real"] and d["low"] > 0]
    if not better:
        return f"By {title}, nothing beats {baseline} by more than the test samples drawn may explain."
    best = max(better, key=lambda name: table[name][metric][0])
    found = results["differences"][best][metric]
    low, high = (f"{100 * found[limit]:+.1f}" for limit in ("low", "high"))
    return (
        f"By {title}, take {Arm.of(best).title}: {100 * found['difference']:+.1f} points over {baseline} "
        f"(95 % interval of the test samples {low} to {high})."
    )


def shift_summary(results: dict) -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """(method, correction) -> shift -> mean and standard deviation (n - 1) of the accuracy over seeds."""
    table = {}
    for name in results["settings"]["methods"]:
        runs = [run["shift"] for run in results["runs"] if run["method"] == name]
        for correction in CORRECTIONS:
            values = {shift: [run[shift][correction] for run in runs] for shift in SHIFTS}
            table[name, correction] = {shift: _mean_and_deviation(v) for shift, v in values.items()}
    return table


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def write_json(path: Path, content: dict, indent: int | None = 1) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=indent) + "\n")
    os.replace(partial, path)
