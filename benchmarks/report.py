"""docs/performance.md and its plots from the results' JSON, whatever cases are in it."""

import json
import statistics
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

RIVALS = {  # providers' names in the JSON -> in the document
    "eager": "by hand",
    "compile": "torch.compile",
    "builtin": "torch's own",
}
SECTIONS = {  # in the document's order; one that is not here follows under its own name
    "losses": "Forward and backward",
    "elements": "Forward and backward of elements",
    "metrics": "Metrics",
    "augmentation": "Augmentation",
    "sampling": "Neighbours and SMOTE",
    "scaling": "From a million to a hundred million elements",
}


def dumps(results: dict) -> str:
    """JSON with a line per case, for readable diffs."""
    parts = []
    for name, value in results.items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items())
        parts.append(f'"{name}": {{\n{lines}\n}}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def write(results: dict, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render(results))
    for name, figure in plots(results):
        path = out.parent / name
        path.parent.mkdir(exist_ok=True)
        # the same file from the same results
        figure.savefig(path, metadata={"Date": None})
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


# ---- the document ------------------------------------------------------------------------------------------------
def render(results: dict) -> str:
    machine = results["machine"]
    parts = [
        "# Performance",
        "Written by `python -m benchmarks report` from [benchmarks/results.json](../benchmarks/results.json), which "
        "`python -m benchmarks run` measured (`make bench` is both). Not edited by hand.",
        f"{machine['processor']}, {machine['threads']} threads, core `{machine['core']}`, "
        f"imbloss {machine['imbloss']}, torch {machine['torch']}, Python {machine['python']}, "
        f"transparent huge pages `{machine['huge_pages']}`, {machine['platform']}.",
        "All providers of a case take turns, round by round, in one process; a ratio is the median over the rounds of "
        "rival over imbloss: above 1, imbloss is faster. Read the ratios: a time by itself says more about the "
        'machine. "By hand" is what people write in PyTorch, torch.compile is that compiled (`dynamic=False`); before '
        "they are timed, value and gradient are checked to agree with imbloss. torch's own is `F.cross_entropy`, of "
        "elements `F.binary_cross_entropy_with_logits`, which is less work than most losses here. "
        '"Copy" is one `Tensor.copy_` of the logits into memory that is already there, the bound for '
        "work that must read and write them once; imbloss writes its gradient to new memory or, from 1 MB on, to "
        "what the last gradient left.",
    ]
    for section in _sections(results):
        entries = [entry for entry in results["cases"].values() if entry["section"] == section]
        parts += [f"## {SECTIONS.get(section, section.capitalize())}", _command(section, entries, machine["cpus"])]
        parts.append(_scaling_table(entries) if section == "scaling" else _times_table(entries))
        parts += [f"![{alt}]({name})" for name, alt in _images(section)]
    if results["memory"]:
        entries = list(results["memory"].values())
        parts += ["## Peak memory", _command("memory", entries, machine["cpus"]), _memory_table(results["memory"])]
        parts.append(
            "Resident memory at its peak, beyond the inputs, of forward and backward (the gradient included), each in "
            "a process of its own, in units of the gradient. imbloss keeps no memory of freed gradients here "
            "(`IMBLOSS_KEEP_MB=0`): what waits for the next one would be there before and not be counted."
        )
    if results["steps"]:
        entries = list(results["steps"].values())
        parts += ["## A training step", _command("steps", entries, machine["cpus"]), _steps_table(results["steps"])]
        parts.append(
            "Small networks on the CPU; the share is that of the loss, forward and backward, in the whole step, and "
            "the peak what a step needs beyond what is there between two steps, again with `IMBLOSS_KEEP_MB=0`."
        )
    return "\n\n".join(part if part.startswith(("|", "#")) else _wrapped(part) for part in parts) + "\n"


def _command(section: str, entries: list[dict], cpus: int) -> str:
    """The command that measured a section, when, and how busy the machine was as it began."""
    dates, loads = (sorted({entry[name] for entry in entries}) for name in ("date", "load"))
    when = f"`python -m benchmarks run --only {section}`, {' to '.join(dict.fromkeys([dates[0], dates[-1]]))}"
    loads_text = " to ".join(str(load) for load in dict.fromkeys([loads[0], loads[-1]]))
    text = f"{when}, load average {loads_text} at the start."
    if loads[-1] <= cpus / 2:
        return text
    return f"{text} **The machine ({cpus} CPUs) was busy: these figures are not to be relied on, measure again.**"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _sections(results: dict) -> list[str]:
    there = dict.fromkeys(entry["section"] for entry in results["cases"].values())
    return [name for name in SECTIONS if name in there] + [name for name in there if name not in SECTIONS]


def _rivals(entries: list[dict]) -> list[str]:
    there = dict.fromkeys(name for entry in entries for name in entry["providers"])
    return [*(n for n in RIVALS if n in there), *(n for n in there if n not in (*RIVALS, "imbloss", "copy"))]


def _times_table(entries: list[dict]) -> str:
    rivals = _rivals(entries)
    rows = []
    for entry in entries:
        providers = entry["providers"]
        copy = providers.get("copy")
        bandwidth = _of_copy(entry) if copy else ["", "", ""]
        ratios = [_short(providers[name]["ratio"][1]) if name in providers else "" for name in rivals]
        rows.append(
            [f"`{entry['function']}` {entry['detail']}", _time(providers["imbloss"]["seconds"]), *ratios, *bandwidth]
        )
    means = []
    for name in rivals:
        ratios = [entry["providers"][name]["ratio"][1] for entry in entries if name in entry["providers"]]
        means.append(f"**{statistics.geometric_mean(ratios):.1f}**")
    heads = [f"{RIVALS.get(name, name)} / imbloss" for name in rivals]
    heads = ["", "imbloss", *heads, "imbloss / copy", "imbloss GB/s", "copy GB/s"]
    rows.append(["geometric mean", "", *means, "", "", ""])
    if not any("copy" in entry["providers"] for entry in entries):
        heads, rows = heads[:-3], [row[:-3] for row in rows]
    return _table(heads, rows)


def _of_copy(entry: dict) -> list[str]:
    """Ours over a copy; bytes of logits read and gradient written a second, and what the copy moves."""
    ours, copy = (entry["providers"][name]["seconds"] for name in ("imbloss", "copy"))
    moved = 2 * entry["bytes"] / 1e9
    return [f"{1 / entry['providers']['copy']['ratio'][1]:.1f}", f"{moved / ours:.1f}", f"{moved / copy:.1f}"]


def _scaling_table(entries: list[dict]) -> str:
    providers = ["imbloss", *_rivals(entries), "copy"]
    rows = []
    for entry in entries:
        cells = [_per_element(entry, name) for name in providers]
        rows.append([f"`{entry['function']}` {entry['detail']}", f"{entry['elements']:.0e}", *cells])
    return _table(["", "elements", *(f"{RIVALS.get(name, name)}, ns" for name in providers)], rows)


def _per_element(entry: dict, provider: str) -> str:
    if provider not in entry["providers"]:
        return ""
    return f"{entry['providers'][provider]['seconds'] / entry['elements'] * 1e9:.3g}"


def _memory_table(memory: dict) -> str:
    names = list(dict.fromkeys(name for entry in memory.values() for name in entry["peaks"]))
    rows = []
    for case, entry in memory.items():
        cells = [f"{entry['peaks'][n] / entry['gradient']:.2f}" if n in entry["peaks"] else "" for n in names]
        rows.append([f"`{case.replace(' ', '` ', 1)}", f"{entry['gradient'] / 1e6:.0f} MB", *cells])
    return _table(["", "gradient", *(RIVALS.get(name, name) for name in names)], rows)


def _steps_table(steps: dict) -> str:
    rows = []
    for entry in steps.values():
        by_hand = entry["providers"]["eager"]["step"]
        for name, of in entry["providers"].items():
            rows.append(
                [
                    entry["title"] if name == "eager" else "",
                    RIVALS.get(name, name),
                    _time(of["step"]),
                    f"{by_hand / of['step']:.2f}",
                    _time(of["loss"]),
                    f"{100 * of['loss'] / of['step']:.0f} %",
                    f"{of['peak'] / 1e6:.0f} MB",
                ]
            )
    return _table(["", "loss", "step", "by hand / this", "in the loss", "share", "peak"], rows)


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


# ---- the plots ---------------------------------------------------------------------------------------------------
def _images(section: str) -> list[tuple[str, str]]:
    """Files that a section shows, and what they show."""
    if section == "scaling":
        return [("img/scaling.svg", "Time per element over the number of elements")]
    return [(f"img/{section}.svg", "How many times as long the rivals take")]


def plots(results: dict) -> Iterator[tuple[str, "Figure"]]:  # noqa: F821
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "imbloss", "svg.fonttype": "none"})
    for section in _sections(results):
        entries = [entry for entry in results["cases"].values() if entry["section"] == section]
        yield _images(section)[0][0], (_plot_scaling if section == "scaling" else _plot_ratios)(entries)


def _plot_ratios(entries: list[dict]):
    """A row a case, a dot a rival with its quartiles; right of 1 imbloss is faster."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 0.24 * len(entries)), layout="constrained")
    axes = figure.subplots()
    for name in _rivals(entries):
        rows = [row for row, entry in enumerate(entries) if name in entry["providers"]]
        ratios = [entries[row]["providers"][name]["ratio"] for row in rows]
        spread = [[middle - low for low, middle, _ in ratios], [high - middle for _, middle, high in ratios]]
        axes.errorbar([r[1] for r in ratios], rows, xerr=spread, fmt="o", markersize=5, label=RIVALS.get(name, name))
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(entries)), [f"{entry['function']} {entry['detail']}" for entry in entries])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="time of the rival / time of imbloss; bars: quartiles over rounds")
    axes.grid(alpha=0.3)
    if _rivals(entries):
        figure.legend(loc="outside upper center", ncols=4)
    return figure


def _plot_scaling(entries: list[dict]):
    from matplotlib.figure import Figure

    functions = list(dict.fromkeys(entry["function"] for entry in entries))
    figure = Figure(figsize=(9, 4 * len(functions)), layout="constrained")
    for axes, function in zip(figure.subplots(len(functions), squeeze=False)[:, 0], functions, strict=True):
        of_function = [entry for entry in entries if entry["function"] == function]
        for name in ["imbloss", *_rivals(of_function), "copy"]:
            points = [
                (entry["elements"], entry["providers"][name]["seconds"] / entry["elements"] * 1e9)
                for entry in of_function
                if name in entry["providers"]
            ]
            style = {"color": "black", "linestyle": ":"} if name == "copy" else {"marker": "o"}
            axes.plot(*zip(*points, strict=True), label=RIVALS.get(name, name), **style)
        axes.set(xscale="log", yscale="log", xlabel="elements", ylabel="ns an element", title=function)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
