"""The `imbloss` command."""

import itertools
import math
import shlex
import sys
from collections.abc import Iterator
from json import dumps
from pathlib import Path
from typing import Annotated, Optional

try:
    import rich.box
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError as error:
    sys.exit(f"the imbloss command needs its extra: pip install 'imbloss[lab]' ({error})")

import imbloss

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _fail(message: object) -> typer.Exit:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"imbloss: {message}", markup=False)
    return typer.Exit(2)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"imbloss {imbloss.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Training on class-imbalanced data in PyTorch."""


PRESETS = {
    "notebook": {
        "data": "cifar10", "profile": "notebook", "model": "cnn", "batch_size": 4, "learning_rate": 1e-3, "epochs": 10,
    },
}  # fmt: skip


@app.command()
def compare(
    data: Annotated[
        str,
        typer.Option(
            help="digits, fashion-mnist, cifar10, cifar100, shuttle or r8; an .npz, .csv, .parquet, .txt or .tsv file; "
            "or a folder with a folder of images per class."
        ),
    ] = "digits",
    target: Annotated[
        Optional[str],  # noqa: UP045, typer reads it so on every Python
        typer.Option(help="Column of a table that has the classes; y, target, label or class by default."),
    ] = None,
    imbalance_ratio: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Make the training set imbalanced: largest over smallest class. 100 for digits, else as is."),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="Of the imbalance: exp, step (half of the classes), or notebook (223 to 1687 samples).")
    ] = "exp",
    preset: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help=f"Settings of a known experiment: {', '.join(PRESETS)}. Other options go before it."),
    ] = None,
    loss: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A loss to compare; repeat, or separate by commas. All of them by default."),
    ] = None,
    sampling: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="none, balanced, sqrt, effective, progressive, over, under, smote, ...: with every loss."),
    ] = None,
    augment: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="none, rare, mixup, cutmix, remix, cmo, eda, aeda: with every loss and sampling."),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="mlp, cnn, linear, bag (texts), or module:function. By default what suits the data."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Repetitions: split, weights and batches differ.")] = 5,
    epochs: Annotated[int, typer.Option()] = 60,
    batch_size: Annotated[int, typer.Option()] = 64,
    learning_rate: Annotated[float, typer.Option(help="Adam's.")] = 1e-3,
    shift: Annotated[
        bool,
        typer.Option("--shift", help="Also test on long-tailed test sets, with and without correction to their prior."),
    ] = False,
    metric: Annotated[
        str, typer.Option(help="What counts: accuracy, balanced_accuracy, macro_f1, g_mean or worst_recall.")
    ] = "balanced_accuracy",
    device: Annotated[str, typer.Option(help="Where models are trained.")] = "cpu",
    jobs: Annotated[int, typer.Option(help="Processes that train at the same time.")] = 1,
    out: Annotated[
        Path, typer.Option(help="Folder for results.json, report.html, plots, and finished runs to go on from.")
    ] = Path("loss_test"),
    context: typer.Context = None,  # type: ignore[assignment]
) -> None:
    """Train with each loss on the same imbalanced data and show what it buys."""
    from imbloss.lab.arms import Arm
    from imbloss.lab.compare import compare as run
    from imbloss.lab.compare import write_json
    from imbloss.lab.methods import METHODS
    from imbloss.lab.scores import SCORES

    given = {
        "data": data, "profile": profile, "model": model, "batch_size": batch_size, "learning_rate": learning_rate,
        "epochs": epochs,
    }  # fmt: skip
    if preset is not None:
        if preset not in PRESETS:
            raise _fail(f"expected preset among {', '.join(PRESETS)}, but got {preset!r}")
        given |= {name: value for name, value in PRESETS[preset].items() if _is_default(context, name)}
    if given["data"] == "digits" and imbalance_ratio is None:
        imbalance_ratio = 100.0
    names = {
        "loss": _listed(loss) or list(METHODS), "sampling": _listed(sampling) or ["none"],
        "augment": _listed(augment) or ["none"],
    }  # fmt: skip
    try:
        methods = _grid(**names)
        if metric not in SCORES:
            raise ValueError(f"expected metric among {', '.join(SCORES)}, but got {metric!r}")
        out.mkdir(parents=True, exist_ok=True)
        with Progress(*_COLUMNS, transient=True) as bar:
            trainings = len({Arm.of(name).trained_as for name in methods}) * seeds
            task, steps = bar.add_task("", total=trainings), itertools.count(0 if jobs == 1 else 1)
            results = run(
                given.pop("data"), methods=methods, imbalance_ratio=imbalance_ratio, target=target, seeds=seeds,
                shift=shift, device=device, jobs=jobs, cells=out / "cells", **given,
                progress=lambda name, seed: bar.update(
                    task, completed=next(steps), description=f"{_title(name)}, seed {seed}"
                ),
            )  # fmt: skip
        write_json(out / "results.json", results)
    except (ValueError, OSError) as error:
        raise _fail(error) from None
    from imbloss.lab.plots import plot_calibration, plot_confusion, plot_recall
    from imbloss.lab.report import write_report

    plot_calibration(results, out / "calibration.png")
    plot_recall(results, out / "recall.png")
    plot_confusion(results, out / "confusion.png")
    write_report(results, out / "report.html", metric=metric, command=shlex.join(["imbloss", *sys.argv[1:]]))
    _show(results, metric)
    if shift:
        _show_shift(results)
    Console(soft_wrap=True).print(
        f"Written: {out}/report.html, results.json, recall.png, confusion.png, calibration.png", highlight=False
    )


_COLUMNS = TextColumn("{task.description:48}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()


def _listed(values: list[str] | None) -> list[str]:
    """Of an option that may be repeated, and hold several values between commas."""
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]


def _grid(loss: list[str], sampling: list[str], augment: list[str]) -> list[str]:
    """Names of all combinations; a part of an unknown name fails where arms are made."""
    parts = [[part for part in combined if part != "none"] for combined in itertools.product(loss, sampling, augment)]
    return ["+".join(names) for names in parts]


def _is_default(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is None or source.name in ("DEFAULT", "DEFAULT_MAP")


def _console() -> Console:
    """Wide enough for a table where there is no terminal to fit."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def _title(name: str) -> str:
    from imbloss.lab.arms import title_of

    return title_of(name)


def _show(results: dict, metric: str) -> None:
    from imbloss.lab.compare import recommendation, summary
    from imbloss.lab.scores import RANKING, SCORES

    settings, counts = results["settings"], results["data"]["train_counts"]
    console = _console()
    console.print(
        f"{settings['source']}: {sum(counts)} training samples, per class {' '.join(map(str, counts))}; "
        f"{sum(results['data']['test_counts'])} test samples; {settings['model']}, {settings['epochs']} epochs, "
        f"{settings['seeds']} seeds. Percent, mean and standard deviation over seeds; ▲ ▼: the difference from the "
        "first row is real, as far as the choice of test samples goes (95 %, paired bootstrap)."
    )
    found = summary(results)
    rows = {_title(name): row for name, row in found.items()}
    marks = {
        (_title(name), score): " ▲" if difference["low"] > 0 else " ▼"
        for name, scores in results["differences"].items()
        for score, difference in scores.items()
        if difference["real"]
    }
    console.print(_table(SCORES, rows, marks))
    console.print("Of the scores: each class against the rest, macro means; and two errors, the lower the better.")
    console.print(_table(RANKING, rows))
    console.print(recommendation(results, metric), highlight=False)


def _show_shift(results: dict) -> None:
    from imbloss.lab.compare import SHIFTS, shift_summary

    titles = {"none": "", "known": " + known prior", "estimated": " + its estimate"}
    rows = {_title(name) + titles[c]: row for (name, c), row in shift_summary(results).items()}
    rows = {title: {shift: (mean, math.nan) for shift, (mean, _) in row.items()} for title, row in rows.items()}
    console = _console()
    console.print(
        "Mean accuracy on test sets with so many samples of the training set's most frequent class to one of its "
        "least frequent, as they are and corrected to the test set's prior:"
    )
    console.print(_table({shift: shift for shift in SHIFTS}, rows))


def _table(
    titles: dict[str, str],
    rows: dict[str, dict[str, tuple[float, float]]],
    marks: dict[tuple[str, str], str] | None = None,
) -> Table:
    """Means and deviations in percent, the best of each column in bold; marks behind the cells of (row, column)."""
    from imbloss.lab.scores import LOWER_IS_BETTER

    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for title in titles.values():
        table.add_column(title, justify="right")
    best = {
        score: (min if score in LOWER_IS_BETTER else max)(row[score][0] for row in rows.values()) for score in titles
    }
    for name, row in rows.items():
        cells = []
        for score in titles:
            mean, deviation = row[score]
            cell = f"{100 * mean:.1f}" + (f" ±{100 * deviation:.1f}" if deviation == deviation else "")
            cell = f"[bold]{cell}[/]" if mean == best[score] else cell
            cells.append(cell + (marks.get((name, score), "  ") if marks else ""))
        table.add_row(name, *cells)
    return table


@app.command()
def doctor(
    device: Annotated[str, typer.Option(help="Where the parity check computes: cpu, cuda or xpu.")] = "cpu",
    json: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the findings to this file, too."),
    ] = None,
    speed: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(help="Measure the speed, against plain PyTorch and others. By default on a GPU, in 3 minutes."),
    ] = None,
    rows: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Of that, at most so many rows: for a device that is slow or small."),
    ] = None,
) -> None:
    """Say what is installed, what computes, and whether it computes right. Exit code 0: all is well."""
    from imbloss.doctor import examine

    findings = examine(device, speed, rows)
    if json:
        try:
            json.write_text(dumps(findings, indent=2) + "\n")
        except OSError as error:
            raise _fail(error) from None
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, value in _findings(findings):
        table.add_row(name.replace("_", " "), escape(value))
    Console(highlight=False, soft_wrap=True).print(table)
    if findings["speed"]:
        Console(highlight=False, soft_wrap=True).print(_speed_table(findings["speed"]))
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    for problem in findings["problems"]:
        errors.print(f"imbloss: {problem}", markup=False)
    if findings["problems"]:
        raise typer.Exit(1)
    typer.echo("All is well.")


def _speed_table(entries: list[dict]) -> Table:
    """Milliseconds of forward and backward, and MB at the peak where that is known."""
    providers = list(dict.fromkeys(name for entry in entries for name in entry["providers"]))
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("ms, forward and backward", *providers, "predicted", "of copy"):
        table.add_column(title, justify="left" if title.startswith("ms") else "right", no_wrap=True)
    for entry in entries:
        cells = []
        for name in providers:
            found = entry["providers"].get(name, {})
            if "seconds" not in found:
                cells.append("fails" if found else "")
                continue
            peak = found["peak_bytes"]
            cells.append(f"{1e3 * found['seconds']:.3f}" + ("" if peak is None else f" ({peak / 1e6:.0f} MB)"))
        predicted, bandwidth = entry["predicted_seconds"], entry["bandwidth_over_copy"]
        name = f"{entry['name']} {'x'.join(map(str, entry['shape']))} {entry['dtype']}"
        table.add_row(
            name,
            *cells,
            "" if predicted is None else f"{1e3 * predicted:.3f}",
            "" if bandwidth is None else f"{100 * bandwidth:.0f} %",
        )
    return table


def _findings(findings: dict) -> Iterator[tuple[str, str]]:
    """Rows of the doctor's table."""
    for name, value in findings["environment"].items():
        if name == "build":
            if value:
                yield name, f"{value['compiler']}, torch {value['torch']}, {value['flags']}"
        else:
            yield name, ", ".join(value) if isinstance(value, list) else str(value)
    parity = findings["parity"]
    yield "parity", f"{parity['checks']} checks on {parity['device']} in {parity['seconds']} s"
    for dtype, worst in parity["worst_eps"].items():
        error = "not finite" if worst is None else f"{worst} eps"
        yield f"worst {dtype}", f"{error}, {parity['allowed_eps']} allowed"


if __name__ == "__main__":
    app()
