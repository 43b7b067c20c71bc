"""The benchmarks' table, and the document made of their results. Times are measured elsewhere, and asserted nowhere."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
import torch
from losses import LOSSES

import imbloss
from benchmarks import cost, indexes, measure, report, samplers, train_step
from benchmarks.cases import CASES, against_the_reference
from benchmarks.metrics import areas_case, update_case

ROOT = Path(__file__).parent.parent
COMMITTED = (ROOT / "benchmarks" / "results.json").read_text()
RESULTS = json.loads(COMMITTED)
SMALL = [case for case in CASES if math.prod(map(int, case.detail.split()[0].split("x"))) <= 500_000]


def test_every_public_loss_is_measured():
    assert {loss.name for loss in LOSSES} <= {case.function for case in CASES}


def test_a_loss_without_a_row_runs_against_its_reference():
    cases = list(against_the_reference(but={"focal_loss"}, classes=5, rows=7))
    assert {case.function for case in cases} == {loss.name for loss in LOSSES} - {"focal_loss"}
    for case in cases:
        measure.check_agreement(case)


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_providers_compute_the_same(case):
    measure.check_agreement(case)


@pytest.mark.parametrize("case", [areas_case(500, 4), areas_case(500, 1)], ids=lambda case: case.name)
def test_providers_of_areas_compute_the_same(case):
    assert {"torchmetrics", "scikit-learn"} < set(case.providers)
    measure.check_agreement(case)


@pytest.mark.parametrize("curves", ["exact", "histogram", "none"])
def test_updates_are_timed_on_both_sides(curves):
    calls = measure.calls(update_case(20, 3, curves))
    assert set(calls) == {"imbloss", "torchmetrics"}
    for call in calls.values():
        call()


def test_a_rival_that_computes_something_else_is_noticed():
    case = next(case for case in CASES if case.name == "focal_loss 32x10")
    half = dataclasses.replace(
        case, providers={**case.providers, "half": lambda x, y: 0.5 * case.providers["eager"](x, y)}
    )
    with pytest.raises(AssertionError, match="focal_loss 32x10: value of half differs from ours by 5"):
        measure.check_agreement(half)


def test_providers_take_turns():
    turns = []
    calls = {name: lambda name=name: turns.append(name) for name in ("imbloss", "eager")}
    seconds = measure.interleaved(calls, rounds=3, budget=0)
    assert turns[-6:] == ["imbloss", "eager"] * 3
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"imbloss": 3, "eager": 3}


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    summary = measure.summary({"imbloss": [1.0, 2.0, 4.0], "eager": [3.0, 4.0, 40.0]})
    assert summary["eager"] == {"seconds": 4.0, "ratio": [2.5, 3.0, 6.5]}
    assert summary["imbloss"] == {"seconds": 2.0, "ratio": [1.0, 1.0, 1.0]}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux's high-water mark")
def test_peak_memory_counts_what_was_freed_again():
    size = 64 * 2**20
    assert abs(measure.peak_of_call(lambda: bytearray(b"1") * size) - size) < 2**20
    assert abs(measure.peak_of_call(lambda: None)) < 2**20


def test_the_document_is_made_of_the_committed_results():
    page = (ROOT / "docs" / "performance.md").read_text()
    assert page == report.render(RESULTS), "python -m benchmarks report writes it"
    for image in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (ROOT / "docs" / image).is_file(), image


def test_a_section_says_when_it_was_measured_and_how_busy_the_machine_was():
    command = "`python -m benchmarks run --only losses`, "
    once = [{"date": "2026-01-02", "load": 0.5}] * 2
    assert report._command("losses", once, cpus=2) == f"{command}2026-01-02, load average 0.5 at the start."
    busy = report._command("losses", [*once, {"date": "2025-12-31", "load": 1.5}], cpus=2)
    assert busy.startswith(f"{command}2025-12-31 to 2026-01-02, load average 0.5 to 1.5 at the start. **The machine (2")


def test_peak_memory_has_room_for_the_gradient():
    for name, entry in RESULTS["memory"].items():
        for provider, peak in entry["peaks"].items():
            assert peak > 0.9 * entry["gradient"], f"{name}: {provider}"


def test_results_are_written_as_they_were_read():
    assert report.dumps(RESULTS) == COMMITTED


def test_the_plots_and_the_document_need_no_provider_but_ours(tmp_path):
    """Results of a machine without torch.compile, and without memory and training steps."""
    key, entry = next(iter(RESULTS["cases"].items()))
    alone = {**entry, "section": "new", "providers": {"imbloss": entry["providers"]["imbloss"]}}
    report.write({**RESULTS, "cases": {key: alone}, "memory": {}, "steps": {}}, tmp_path / "docs" / "page.md")
    page = (tmp_path / "docs" / "page.md").read_text()
    assert "## New" in page and "Peak memory" not in page
    assert (tmp_path / "docs" / "img" / "new.svg").read_text().startswith("<?xml")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux's high-water mark")
def test_exponents_are_slopes_of_logarithms():
    rows = [1000, 3000, 10_000, 30_000, 100_000]
    assert cost.exponent({"rows": rows, "seconds": [3e-9 * n**1.5 for n in rows]}) == pytest.approx(1.5)
    bent = {"rows": rows, "seconds": [n if n < 10_000 else n**2 / 10_000 for n in rows]}
    assert cost.exponent(bent, last_decade=True) == pytest.approx(2) and 1 < cost.exponent(bent) < 2


def test_the_cost_in_the_document_is_that_of_the_committed_file():
    stored = json.loads((ROOT / cost.IMAGE).with_suffix(".json").read_text())
    assert cost.table(stored["series"]) in (ROOT / "docs" / "sampling.md").read_text()
    assert stored["series"].keys() == cost.SERIES.keys()
    assert max(stored["series"]["SMOTE"]["rows"]) == 1_000_000


def test_cost_is_measured_drawn_and_stored(tmp_path, monkeypatch):
    (tmp_path / "docs" / "img").mkdir(parents=True)
    monkeypatch.setattr(cost, "BUDGET", 0.0)
    cost.run({"date": "today"}, 3000, tmp_path)
    stored = json.loads((tmp_path / cost.IMAGE).with_suffix(".json").read_text())
    assert stored["series"]["SMOTENC"]["rows"] == [1000, 3000] and stored["machine"] == {"date": "today"}
    assert "<svg" in (tmp_path / cost.IMAGE).read_text()


def test_every_index_is_measured(monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(indexes, "INDEXES", {"flat": {"index": "flat"}, "lists": {"index": "IVF8,SQ8", "nprobe": 1}})
    _, _, ours, flat, lists = indexes.table(600).splitlines()
    assert ours.endswith("| 1 | 0 |") and "| 1.000 |" in flat and "| 1.000 |" not in lists


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_samplers_are_measured_reading_every_draw(name, monkeypatch):
    read = []
    monkeypatch.setattr(samplers, "exhaust", lambda items: read.extend(items))
    found = samplers.measured(name, 5000, 2000)
    assert sum(draw.numel() if isinstance(draw, torch.Tensor) else 1 for draw in read) == 2000
    assert found["construction"] > 0 and found["draws"] > 0 and found["memory"] >= 0


@pytest.mark.parametrize("provider", ["eager", "imbloss"])
def test_a_training_step_trains_and_times_the_loss_in_it(provider):
    model = torch.nn.Linear(4, 3)
    before = model.weight.detach().clone()
    losses = {"eager": torch.nn.functional.cross_entropy, "imbloss": imbloss.cross_entropy}
    workload = train_step.Workload("tiny", lambda: (model, torch.randn(8, 4), torch.randint(3, (8,))), losses)
    whole, in_loss = train_step.trainer(workload, provider)()
    assert 0 < in_loss < whole
    assert not torch.equal(model.weight, before)
