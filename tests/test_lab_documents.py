"""The tables in the documents are those of the committed results of loss tests."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from imbloss.lab.arms import title_of
from imbloss.lab.compare import differences, summary
from imbloss.lab.scores import rare_recall, scores

DOCS = Path(__file__).parents[1] / "docs"
# page -> committed results, in the order of its tables
TABLES = {
    "compare.md": ["fashion_losses.json"],
    "choosing.md": ["digits_samplings.json"],
    "augmentation.md": ["fashion_augmentations.json", "r8_augmentations.json"],
}
COLUMNS = ("accuracy", "macro_f1", "worst_recall")


def rows_of(results):
    """A row per method: COLUMNS and the mean recall of the rarest third, percent, mean and deviation over seeds; marks
    as the command prints them."""
    rows = []
    for name, row in summary(results).items():
        runs = [run for run in results["runs"] if run["method"] == name]
        rare = [rare_recall(np.array(run["confusion"]), results["data"]["train_counts"]) for run in runs]
        numbers = {score: row[score] for score in COLUMNS} | {"rare": (np.mean(rare), np.std(rare, ddof=1))}
        cells = []
        for score, (mean, deviation) in numbers.items():
            found = results["differences"].get(name, {}).get(score)
            mark = " ▲" if found and found["real"] and found["low"] > 0 else " ▼" if found and found["real"] else ""
            cells.append(f"{100 * mean:.1f} ± {100 * deviation:.1f}{mark}")
        rows.append(f"| {title_of(name)} | {' | '.join(cells)} |")
    return rows


@pytest.mark.parametrize("page", TABLES)
def test_tables_are_those_of_the_committed_results(page):
    text = (DOCS / page).read_text()
    tables = re.findall(r"\| percent.*\n\|[-| ]+\n((?:\|.*\n)+)", text)
    assert len(tables) == len(TABLES[page])
    for table, file in zip(tables, TABLES[page], strict=True):
        results = json.loads((DOCS / file).read_text())
        assert table.splitlines() == rows_of(results)
        assert file in text  # which is linked


@pytest.mark.parametrize("file", sorted(file for files in TABLES.values() for file in files))
def test_committed_scores_are_those_of_the_committed_runs(file):
    results = json.loads((DOCS / file).read_text())
    for run in results["runs"]:
        of_confusion = scores(np.array(run["confusion"]))
        assert of_confusion == pytest.approx({name: run["scores"][name] for name in of_confusion})
    for name, found in differences(results).items():
        for score, numbers in found.items():
            assert numbers == pytest.approx(results["differences"][name][score], abs=1e-12)
