"""A pytest plugin: imbalanced-learn's own tests with imbloss's samplers put in.

    python -m pytest -p imblearn_swap --pyargs imblearn.over_sampling._smote.tests.test_smote

Each test module has the names of imbalanced-learn's classes replaced before its tests are collected, in its globals, in
the parameters of its tests and, for what the module takes from elsewhere, in imblearn's own packages.
"""

import imblearn.combine
import imblearn.over_sampling
import imblearn.under_sampling

from imbloss.sampling import imblearn as face

SWAPPED = {
    getattr(package, name): getattr(face, name)
    for package in (imblearn.over_sampling, imblearn.under_sampling, imblearn.combine)
    for name in face.__all__
    if hasattr(package, name)
}


def swapped(value):
    """The value with every swapped class, and every instance of one, replaced; None where there is none in it."""
    if isinstance(value, type):
        return SWAPPED.get(value)
    if type(value) in SWAPPED:
        parameters = {key: swapped(part) or part for key, part in value.get_params(deep=False).items()}
        return SWAPPED[type(value)](**parameters)
    if isinstance(value, (list, tuple)):
        parts = [swapped(part) for part in value]
        if any(part is not None for part in parts):
            return type(value)(old if new is None else new for old, new in zip(value, parts, strict=True))
    return None


def pytest_collection_modifyitems(items):
    for module in {item.module for item in items}:
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and value in SWAPPED:
                setattr(module, name, SWAPPED[value])
    for item in items:
        callspec = getattr(item, "callspec", None)
        for name, value in callspec.params.items() if callspec else ():
            new = swapped(value)
            if new is not None:
                callspec.params[name] = new


def pytest_sessionstart():
    """Counts how often each class resamples, for whoever wants to know that the swap took place."""
    for kind in SWAPPED.values():
        counted(kind)


COUNTS = dict.fromkeys(sorted(kind.__name__ for kind in SWAPPED.values()), 0)


def counted(kind):
    original = kind.fit_resample

    def fit_resample(self, *args, **kwargs):
        COUNTS[kind.__name__] += 1
        return original(self, *args, **kwargs)

    kind.fit_resample = fit_resample


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line("imbloss's classes were swapped in:")
    for name, count in COUNTS.items():
        terminalreporter.write_line(f"{name} resampled {count} times")
