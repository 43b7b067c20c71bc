"""A report in text."""

from typing import Any

from torch import Tensor

SHORT = {
    "precision": "pre", "recall": "rec", "specificity": "spe", "f1": "f1", "g_mean": "geo", "iba": "iba",
    "auroc": "auroc", "average_precision": "ap",
}  # fmt: skip
TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "g_mean": "geometric mean of recalls",
    "mcc": "Matthews' correlation",
    "kappa": "Cohen's kappa",
    "worst_recall": "worst recall",
    "many_shot_accuracy": "many-shot accuracy",
    "medium_shot_accuracy": "medium-shot accuracy",
    "few_shot_accuracy": "few-shot accuracy",
    "ece": "expected calibration error",
    "brier": "Brier score",
}


def report(found: dict[str, Any], class_names: list[str], worst_class: str | None, digits: int) -> str:
    support: Tensor = found["counts"].support
    columns = [name for name in SHORT if name in found["classes"]]
    width = max(len("weighted"), *map(len, class_names))

    def row(name: str, cells: list[str]) -> str:
        return name.ljust(width) + "".join(cell.rjust(digits + 5) for cell in cells)

    def number(value: Any) -> str:
        return "-" if value is None or value != value else f"{float(value):.{digits}f}"

    def amount(value: Any) -> str:
        return f"{float(value):.0f}" if float(value).is_integer() else f"{float(value):.{digits}f}"

    lines = [row("", [*(SHORT[name] for name in columns), "sup"]), ""]
    for c, name in enumerate(class_names):
        cells = [number(found["classes"][column][c]) for column in columns]
        lines.append(row(name, [*cells, amount(support[c])]))
    lines.append("")
    for kind, means in found["averages"].items():
        lines.append(row(kind, [*(number(means.get(column)) for column in columns), amount(support.sum())]))
    lines.append("")
    single = found["single"]
    wide = max(len(TITLES[name]) for name in single if name in TITLES) + 2
    for name, title in TITLES.items():
        if name in single:
            note = f"  {worst_class}" if name == "worst_recall" and worst_class is not None else ""
            lines.append(title.ljust(wide) + number(single[name]) + note)
    return "\n".join([*lines, *notes(found, class_names)])


def notes(found: dict[str, Any], class_names: list[str]) -> list[str]:
    """What a reader has to know to believe the numbers."""
    support, lines = found["counts"].support, []
    absent = [name for name, n in zip(class_names, support.tolist(), strict=True) if n == 0]
    if absent:
        shown = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
        lines.append(f"Without samples, in no average: {shown}.")
    if "broken" in found and bool((found["broken"] > 0).any()):
        lines.append("There are NaN among the scores: such a sample is missed, and what needs its score is NaN.")
    for name, bound in found.get("error_bounds", {}).items():
        lines.append(f"{SHORT[name]} from histograms: within {float(bound.nan_to_num().max()):.1e} of the exact value.")
    return lines and ["", *lines]
