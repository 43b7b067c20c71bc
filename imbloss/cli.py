"""The `imbloss` command."""

import math
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


@app.command()
def compare(
    data: Annotated[str, typer.Option(help="'digits', or an .npz file with X and y.")] = "digits",
    imbalance_ratio: Annotated[
        Optional[float],  # noqa: UP045, typer reads it so on every Python
        typer.Option(
            help="Make the training set long-tailed: largest over smallest class. 100 for digits, else as is."
        ),
    ] = None,
    loss: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A method to compare; repeat for several. All of them by default."),
    ] = None,
    model: Annotated[str, typer.Option(help="mlp or cnn.")] = "mlp",
    seeds: Annotated[int, typer.Option(help="Repetitions: split, weights and batches differ.")] = 5,
    epochs: Annotated[int, typer.Option()] = 60,
    batch_size: Annotated[int, typer.Option()] = 64,
    learning_rate: Annotated[float, typer.Option(help="Adam's.")] = 1e-3,
    shift: Annotated[
        bool,
        typer.Option("--shift", help="Also test on long-tailed test sets, with and without correction to their prior."),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for results.json and plots.")] = Path("loss_test"),
) -> None:
    """Train with each loss on the same imbalanced data and show what it buys."""
    from imbloss.lab.compare import compare as run
    from imbloss.lab.compare import write_json
    from imbloss.lab.methods import METHODS

    methods = loss or list(METHODS)
    if data == "digits" and imbalance_ratio is None:
        imbalance_ratio = 100.0
    columns = TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task("", total=len(methods) * seeds)
            steps = iter(range(len(methods) * seeds))
            results = run(
                data, methods=methods, imbalance_ratio=imbalance_ratio, model=model, seeds=seeds, epochs=epochs,
                batch_size=batch_size, learning_rate=learning_rate, shift=shift,
                progress=lambda name, seed: bar.update(
                    task, completed=next(steps), description=f"{METHODS[name].title}, seed {seed}"
                ),
            )  # fmt: skip
        write_json(out / "results.json", results)
    except (ValueError, OSError) as error:
        raise _fail(error) from None
    from imbloss.lab.plots import plot_confusion, plot_recall

    plot_recall(results, out / "recall.png")
    plot_confusion(results, out / "confusion.png")
    _show(results)
    if shift:
        _show_shift(results)
    Console(soft_wrap=True).print(f"Written: {out}/results.json, recall.png, confusion.png", highlight=False)


def _show(results: dict) -> None:
    from imbloss.lab.compare import summary
    from imbloss.lab.methods import METHODS
    from imbloss.lab.scores import SCORES

    settings, counts = results["settings"], results["data"]["train_counts"]
    console = Console(highlight=False)
    console.print(
        f"{settings['source']}: {sum(counts)} training samples, per class {' '.join(map(str, counts))}; "
        f"{sum(results['data']['test_counts'])} test samples; {settings['model']}, {settings['epochs']} epochs, "
        f"{settings['seeds']} seeds. Percent, mean and standard deviation over seeds."
    )
    rows = summary(results)
    console.print(_table(SCORES, {METHODS[name].title: row for name, row in rows.items()}))


def _show_shift(results: dict) -> None:
    from imbloss.lab.compare import SHIFTS, shift_summary
    from imbloss.lab.methods import METHODS

    titles = {"none": "", "known": " + known prior", "estimated": " + its estimate"}
    rows = {METHODS[name].title + titles[c]: row for (name, c), row in shift_summary(results).items()}
    rows = {title: {shift: (mean, math.nan) for shift, (mean, _) in row.items()} for title, row in rows.items()}
    console = Console(highlight=False)
    console.print(
        "Mean accuracy on test sets with so many samples of the training set's most frequent class to one of its "
        "least frequent, as they are and corrected to the test set's prior:"
    )
    console.print(_table({shift: shift for shift in SHIFTS}, rows))


def _table(titles: dict[str, str], rows: dict[str, dict[str, tuple[float, float]]]) -> Table:
    """Means and deviations in percent, the best of each column in bold."""
    table = Table(box=rich.box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for title in titles.values():
        table.add_column(title, justify="right")
    best = {score: max(row[score][0] for row in rows.values()) for score in titles}
    for name, row in rows.items():
        cells = []
        for score, (mean, deviation) in row.items():
            cell = f"{100 * mean:.1f}" + (f" ±{100 * deviation:.1f}" if deviation == deviation else "")
            cells.append(f"[bold]{cell}[/]" if mean == best[score] else cell)
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
