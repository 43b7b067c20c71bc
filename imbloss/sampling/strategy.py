"""``sampling_strategy`` in all its forms, as imbalanced-learn defines them: which classes get how many rows."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

OVER, UNDER, CLEAN = "over-sampling", "under-sampling", "cleaning"
# name -> kinds of samplers that it is for
NAMES = {
    "auto": (OVER, UNDER, CLEAN),
    "all": (OVER, UNDER, CLEAN),
    "not majority": (OVER, UNDER, CLEAN),
    "not minority": (OVER, UNDER, CLEAN),
    "minority": (OVER,),
    "majority": (UNDER, CLEAN),
}


def resolve(strategy: Any, counts: dict[Any, int], kind: str, y: Any) -> dict[Any, int]:
    """Class -> rows to add (over-sampling) or to keep (under-sampling), of the classes to resample alone, in order.

    Args:
        strategy: a name; a dict of class -> rows afterwards; a number (two classes): the smaller class's share of the
            larger one's rows afterwards; a list of classes, for cleaning; or a function of y that returns one of these.
        counts: class -> rows, classes in order. Cleaning takes the classes alone from the result.
        kind: OVER, UNDER or CLEAN.
        y: what a function gets.

    Raises:
        TypeError, ValueError: a strategy that does not fit the kind or the classes; the message names it.
    """
    if len(counts) < 2:
        raise ValueError(f"expected y of at least two classes, but got one class: {list(counts)}")
    if callable(strategy):
        strategy = strategy(y)
    if isinstance(strategy, str):
        wanted = _named(strategy, counts, kind)
    elif isinstance(strategy, Mapping):
        wanted = _counted(strategy, counts, kind)
    elif isinstance(strategy, (list, tuple, set)):
        _check(kind == CLEAN, f"to be a dict, a name or a number for {kind}", strategy)
        _check_known(strategy, counts)
        wanted = dict.fromkeys(strategy, 0)
    elif isinstance(strategy, Real) and not isinstance(strategy, bool):
        wanted = _share(float(strategy), counts, kind)
    else:
        raise TypeError(
            "expected sampling_strategy to be a name, a number, a dict, a list or a function, but got "
            f"{type(strategy).__name__}"
        )
    return {label: wanted[label] for label in counts if label in wanted}


def _check(holds: bool, constraint: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"expected sampling_strategy {constraint}, but got {value!r}")


def _check_known(labels: Any, counts: dict[Any, int]) -> None:
    unknown = [label for label in labels if label not in counts]
    _check(not unknown, f"of classes in y, {list(counts)}", unknown)


def _named(name: str, counts: dict[Any, int], kind: str) -> dict[Any, int]:
    names = [known for known, kinds in NAMES.items() if kind in kinds]
    _check(name in names, f"in {names} for {kind}", name)
    smallest, largest = min(counts, key=lambda c: counts[c]), max(counts, key=lambda c: counts[c])
    if name == "auto":
        name = "not majority" if kind == OVER else "not minority"
    chosen = {
        "all": lambda c: True,
        "not majority": lambda c: c != largest,
        "not minority": lambda c: c != smallest,
        "minority": lambda c: c == smallest,
        "majority": lambda c: c == largest,
    }[name]
    target = counts[largest if kind == OVER else smallest]
    return {c: target - n if kind == OVER else target for c, n in counts.items() if chosen(c)}


def _counted(rows: Mapping[Any, int], counts: dict[Any, int], kind: str) -> dict[Any, int]:
    _check_known(rows, counts)
    if kind == CLEAN:
        _check(False, "to be a list of classes, or a name, for cleaning", dict(rows))
    for label, n in rows.items():
        if isinstance(n, bool) or not isinstance(n, Integral):
            raise TypeError(f"expected sampling_strategy of whole numbers of rows, but got {n!r} for class {label!r}")
        has = counts[label]
        if kind == OVER:
            _check(n >= has, f"of at least the {has} rows that class {label!r} has", int(n))
        else:
            _check(0 <= n <= has, f"of 0 to the {has} rows that class {label!r} has", int(n))
    return {label: int(n) - counts[label] if kind == OVER else int(n) for label, n in rows.items()}


def _share(share: float, counts: dict[Any, int], kind: str) -> dict[Any, int]:
    _check(kind != CLEAN, "to be a name or a list for cleaning", share)
    _check(len(counts) == 2, f"to be a dict or a name for {len(counts)} classes", share)
    _check(0 < share <= 1, "in (0, 1] where it is a number", share)
    if kind == OVER:
        (largest, most), (smallest, least) = sorted(counts.items(), key=lambda item: -item[1])
        target = int(most * share)
        _check(target > least, f"of more than {least / most:.4g}, the share that class {smallest!r} has already", share)
        return {smallest: target - least}
    (smallest, least), (largest, most) = sorted(counts.items(), key=lambda item: item[1])
    target = int(least / share)
    _check(target <= most, f"of at least {least / most:.4g}, the share that class {smallest!r} has already", share)
    return {largest: target}
