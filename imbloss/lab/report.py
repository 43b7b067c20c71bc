"""A loss test as one page that needs nothing else: to send, to keep, to read on a phone."""

import base64
import html
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from imbloss.lab.arms import title_of
from imbloss.lab.compare import CORRECTIONS, SHIFTS, recommendation, shift_summary, summary
from imbloss.lab.plots import plot_calibration, plot_confusion, plot_recall
from imbloss.lab.scores import LOWER_IS_BETTER, RANKING, SCORES

STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #777; --good: #18794e; --bad: #b42318; }
@media (prefers-color-scheme: dark) { :root { --faint: #aaa; --good: #4cc38a; --bad: #ff9592; } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; margin: .5rem 0 }
h2 { margin: 2rem 0 .5rem }
.answer { font-size: 1.15rem; border-left: .3rem solid var(--good); padding: .3rem 0 .3rem 1rem; margin: 1rem 0 }
.faint { color: var(--faint) }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: Canvas }
.best { font-weight: 700 }
.up { color: var(--good) } .down { color: var(--bad) }
img { max-width: 100%; height: auto; background: white; border-radius: .4rem }
.wide img { min-width: 34rem }
pre { overflow-x: auto; padding: .7rem; border: 1px solid var(--line); border-radius: .4rem }
@media (max-width: 40rem) {
  table { font-size: .8rem }
  th, td { padding: .3rem .4rem }
  th { white-space: normal; vertical-align: bottom }
  th:first-child, td:first-child { white-space: normal; min-width: 6rem; max-width: 7.5rem; padding-left: 0 }
}
"""


def write_report(results: dict, path: Path, *, metric: str, command: str) -> None:
    """Args:
    results: see :func:`imbloss.lab.compare.compare`.
    metric: one of SCORES, by which the page recommends.
    command: that repeats the test.
    """
    settings, counts = results["settings"], results["data"]["train_counts"]
    source = html.escape(settings["source"])
    facts = (
        f"{sum(counts)} training samples, per class {' '.join(map(str, counts))}; "
        f"{sum(results['data']['test_counts'])} test samples; model {html.escape(settings['model'])}, "
        f"{settings['epochs']} epochs, {settings['seeds']} seeds."
    )
    parts = [
        f"<h1>Loss test: {source}</h1>",
        f'<p class="answer">{html.escape(recommendation(results, metric))}</p>',
        f'<p class="faint">{facts}</p>',
        "<h2>Scores</h2>",
        "<p>Percent, mean ± standard deviation over seeds. ▲ and ▼: better or worse than the first row, beyond what "
        "the choice of test samples explains (95 % interval of a paired bootstrap, one row at a time).</p>",
        _table(results, SCORES),
        "<p>Of the scores rather than the answers: each class against the rest, macro means; and two errors, the lower "
        "the better.</p>",
        _table(results, RANKING),
        _plot("Recall of each class", plot_recall, results),
        _plot("Confusion", plot_confusion, results),
        _plot("Calibration", plot_calibration, results),
    ]
    if "shift" in results["runs"][0]:
        parts += ["<h2>Shifted test sets</h2>", _shift_table(results)]
    rows = settings | {f"version of {name}": version for name, version in results["versions"].items()}
    parts += [
        "<h2>Settings</h2>",
        _rows([(name.replace("_", " "), _plain(value)) for name, value in rows.items()]),
        "<h2>Again</h2>",
        f"<pre>{html.escape(command)}</pre>",
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Loss test: {source}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts)
    )
    path.write_text(page + "\n</body>\n</html>\n", encoding="utf-8")


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "none" if value is None else str(value)


def _table(results: dict, titles: dict[str, str]) -> str:
    table = summary(results)
    best = {
        score: (min if score in LOWER_IS_BETTER else max)(row[score][0] for row in table.values()) for score in titles
    }
    lines = []
    for name, row in table.items():
        cells = [f"<td>{html.escape(title_of(name))}</td>"]
        for score in titles:
            mean, deviation = row[score]
            text = f"{100 * mean:.1f}" + (f" ± {100 * deviation:.1f}" if deviation == deviation else "")
            kind = ' class="best"' if mean == best[score] else ""
            cells.append(f"<td{kind}>{text}{_mark(results, name, score)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    heads = "".join(f"<th>{html.escape(title)}</th>" for title in ["", *titles.values()])
    return f'<div class="wide"><table><tr>{heads}</tr>{"".join(lines)}</table></div>'


def _mark(results: dict, name: str, score: str) -> str:
    found = results["differences"].get(name, {}).get(score)
    if not found or not found["real"]:
        return ""
    kind, sign = ("up", "▲") if found["low"] > 0 else ("down", "▼")
    limits = f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"
    return f' <span class="{kind}" title="{limits} points">{sign}</span>'


def _shift_table(results: dict) -> str:
    suffix = {"none": "", "known": " + known prior", "estimated": " + its estimate"}
    rows = [["", *SHIFTS]]
    for (name, correction), row in shift_summary(results).items():
        rows.append([title_of(name) + suffix[correction], *(f"{100 * row[shift][0]:.1f}" for shift in SHIFTS)])
    assert set(suffix) == set(CORRECTIONS)
    return _rows(rows)


def _rows(rows: list) -> str:
    lines = ("".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows)
    return f'<div class="wide"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _plot(title: str, plot: Callable[[dict, Path], None], results: dict) -> str:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "plot.png"
        plot(results, path)
        picture = base64.b64encode(path.read_bytes()).decode()
    return f'<h2>{title}</h2><div class="wide"><img alt="{title}" src="data:image/png;base64,{picture}"></div>'
