"""python -m benchmarks run       measure, into benchmarks/results.json
python -m benchmarks report    docs/performance.md and its plots from that
python -m benchmarks samplers  samplers of millions of labels: the table of docs/data.md
python -m benchmarks cost      SMOTE and knn from a thousand rows to a million: docs/img/sampling_cost.svg
python -m benchmarks indexes   faiss's indexes beside exact search: the table of docs/sampling.md
python -m benchmarks stream    batches from a file of 2 GiB: the figures of docs/sampling.md
python -m benchmarks design    where the gradient is made: the table of docs/kernels.md
python -m benchmarks aot       what the Triton kernels compile to, for GPUs that need not be there
python -m benchmarks host      microseconds of Python around the Triton kernels
python -m benchmarks predict   how long they should take by a model: the table of docs/gpu.md

`run --only WORD` measures the cases whose name or section contains WORD, and replaces these in results of the same
machine and versions. docs/performance.md is written by `report` alone.
"""

import argparse
import datetime
import functools
import json
import os
from pathlib import Path

import torch

from benchmarks import cost, design, indexes, measure, report, samplers, stream, train_step
from benchmarks.augmentation import AUGMENTATION
from benchmarks.cases import CASES
from benchmarks.metrics import METRICS
from imbloss.doctor import environment

ROOT = Path(__file__).parent.parent
MACHINE = (
    "imbloss", "torch", "triton", "python", "platform", "processor", "core", "backend", "huge_pages", "threads",
)  # fmt: skip


def machine() -> dict:
    found = environment()
    return {name: found[name] for name in MACHINE} | {"cpus": os.cpu_count()}


def when() -> dict:
    return {"date": datetime.date.today().isoformat(), "load": round(os.getloadavg()[0], 1)}


def dated_machine() -> dict:
    return machine() | when()


def run(options: argparse.Namespace) -> None:
    results = {"machine": machine(), "cases": {}, "memory": {}, "steps": {}}
    if options.only and options.json.exists():
        before = json.loads(options.json.read_text())
        now = {**before["machine"], **results["machine"]}
        if now != before["machine"]:
            raise SystemExit(f"expected {options.json} to be of this machine and these versions: choose another --json")
        results = before
    started = when()
    print(results["machine"] | started)

    def wanted(*names: str) -> bool:
        return any(options.only in name for name in names)

    def save() -> None:
        options.json.write_text(report.dumps(results))

    for case in [*CASES, *METRICS, *AUGMENTATION]:
        if wanted(case.name, case.section):
            key = f"{case.section}: {case.name}"
            entry = measure.timed(case, options.rounds, options.budget, not options.no_compile)
            results["cases"][key] = entry | started
            ratios = ", ".join(f"{n} {p['ratio'][1]:.2f}" for n, p in entry["providers"].items() if n != "imbloss")
            print(f"{key:50} {entry['providers']['imbloss']['seconds'] * 1e6:10.1f} us; over it: {ratios}", flush=True)
            save()
    for case in CASES:
        if case.peak and wanted(case.name, "memory"):
            peaks = measure.peaks(case, not options.no_compile)
            logits = case.inputs()[0]
            results["memory"][case.name] = {
                "gradient": logits.numel() * logits.element_size(), "peaks": peaks, **started,
            }  # fmt: skip
            print(f"memory: {case.name}: " + ", ".join(f"{n} {b / 1e6:.1f} MB" for n, b in peaks.items()), flush=True)
            save()
    for name in train_step.WORKLOADS:
        if wanted(name, "steps"):
            results["steps"][name] = train_step.timed(name, options.rounds) | started
            print(f"steps: {name}: {results['steps'][name]['providers']}", flush=True)
            save()


def ahead_of_time(name: str, options: argparse.Namespace) -> None:
    from benchmarks import aot, host, model  # they need triton

    if name == "aot":
        aot.table(options.targets.split(","), options.only, options.json)
    else:
        {"host": host, "predict": model}[name].table()


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.add_argument("--only", default="", help="cases whose name or section contains this word")
    running.add_argument("--rounds", type=int, default=measure.ROUNDS)
    running.add_argument("--budget", type=float, default=measure.BUDGET, help="seconds a provider and round")
    running.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes 10 s a case")
    running.set_defaults(command=run)
    reporting = commands.add_parser("report")
    reporting.add_argument("--out", type=Path, default=ROOT / "docs" / "performance.md")
    reporting.set_defaults(command=lambda o: report.write(json.loads(o.json.read_text()), o.out))
    commands.add_parser("design").set_defaults(command=lambda o: design.table(), json=None)
    sampling = commands.add_parser("samplers")
    sampling.add_argument("labels", type=int, nargs="?", default=samplers.LABELS)
    sampling.add_argument("draws", type=int, nargs="?", default=samplers.DRAWS)
    sampling.set_defaults(command=lambda o: print(samplers.table(o.labels, o.draws)))
    costing = commands.add_parser("cost")
    costing.add_argument("rows", type=int, nargs="?", default=cost.SIZES[-1], help="the most")
    costing.set_defaults(command=lambda o: cost.run(dated_machine(), o.rows, ROOT))
    indexing = commands.add_parser("indexes")
    indexing.add_argument("rows", type=int, nargs="?", default=indexes.ROWS)
    indexing.set_defaults(command=lambda o: print(indexes.table(o.rows)))
    streaming = commands.add_parser("stream")
    streaming.add_argument("file", nargs="?", default=None)
    streaming.add_argument("mebibytes", type=int, nargs="?", default=2048)
    streaming.add_argument("batches", type=int, nargs="?", default=200)
    streaming.set_defaults(command=lambda o: stream.table(o.file, o.mebibytes, o.batches))
    for command in (running, reporting):
        command.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results.json")
    for name, help_of_targets in (
        ("aot", "of sm_80, sm_90, sm_100, sm_120, gfx942"),
        ("host", None),
        ("predict", None),
    ):
        command = commands.add_parser(name)
        command.add_argument("--json", type=Path, default=None)
        if help_of_targets:
            command.add_argument("--targets", default="sm_80,sm_90,sm_100,sm_120,gfx942", help=help_of_targets)
            command.add_argument("--only", default="", help="cases whose name contains this word")
        command.set_defaults(command=functools.partial(ahead_of_time, name))
    options = parser.parse_args()
    if torch.are_deterministic_algorithms_enabled():
        raise SystemExit("expected deterministic algorithms to be off: they fill new memory")
    options.command(options)


if __name__ == "__main__":
    main()
