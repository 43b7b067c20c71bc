"""The scikit-learn face: imbalanced-learn's own tests and estimator checks, with imbloss's classes put in."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("imblearn")

import imblearn.over_sampling
import numpy as np
from imblearn.pipeline import make_pipeline
from imblearn.utils.estimator_checks import parametrize_with_checks
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression

from imbloss.sampling import imblearn as face

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "sampling.md").read_text()
# test modules of imbalanced-learn, as docs/sampling.md lists them, and how many of their tests are known to fail
MODULES = {name: int(failing) for name, failing in re.findall(r"^\| `(imblearn\.\S+)` \| \d+ \| (\d+) \|", PAGE, re.M)}


@pytest.fixture(scope="module")
def outcome():
    """Lines "outcome node" of imbalanced-learn's tests with our classes in them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-p", "imblearn_swap"]
    result = subprocess.run(
        [*command, "--pyargs", *MODULES], capture_output=True, text=True, env=environment, cwd=ROOT / "benchmarks"
    )
    assert "swapped in" in result.stdout, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_imbalanced_learns_own_tests_pass_but_for_those_in_the_document(outcome):
    failed = sorted(set(re.findall(r"^FAILED (?:\S*)::(\S+)", outcome, re.M)))
    known = sorted(re.findall(r"^- `(test_\S+)`: ", PAGE, re.M))
    assert failed == known
    assert "error" not in outcome.splitlines()[-1]
    passed = int(re.search(r"(\d+) passed", outcome)[1])
    assert passed + len(failed) == sum(map(int, re.findall(r"^\| `imblearn\.\S+` \| (\d+) \|", PAGE, re.M)))


def test_our_classes_were_in_them(outcome):
    counts = dict(re.findall(r"^(\w+) resampled (\d+) times", outcome, re.M))
    assert counts.keys() == set(face.__all__) - {"ROSE"}
    assert all(int(count) > 0 for count in counts.values())


NEEDED = {"SMOTENC": {"categorical_features": [0]}}


def estimators():
    made = [getattr(face, name)(**NEEDED.get(name, {})) for name in face.__all__]
    return [est.set_params(random_state=0) if "random_state" in est.get_params() else est for est in made]


def known_to_fail(estimator):
    if isinstance(estimator, face.SMOTENC):
        return {"check_samplers_string": "one column of strings alone, which SMOTE-NC is not for"}
    return {}


@parametrize_with_checks(estimators(), expected_failed_checks=known_to_fail)
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", face.__all__)
def test_a_pipeline_is_cloned_and_fits(name):
    X, y = make_classification(n_samples=300, weights=[0.8], random_state=0)
    pipeline = clone(make_pipeline(getattr(face, name)(**NEEDED.get(name, {})), LogisticRegression()))
    assert pipeline.fit(X, y).score(X, y) > 0.6


@pytest.mark.parametrize("name", ["SMOTE", "BorderlineSMOTE", "ADASYN", "RandomOverSampler"])
def test_one_resampled_class_equals_imbalanced_learns(name):
    X, y = make_classification(n_samples=400, n_features=7, n_redundant=0, weights=[0.85], flip_y=0.1, random_state=1)
    ours, theirs = getattr(face, name)(random_state=3), getattr(imblearn.over_sampling, name)(random_state=3)
    for got, expected in zip(ours.fit_resample(X, y), theirs.fit_resample(X, y), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_every_class_draws_numbers_of_its_own():
    """imbalanced-learn starts an int anew for every class: its classes get the same numbers."""
    X, y = make_classification(n_samples=300, n_classes=3, n_informative=4, weights=[0.6, 0.2], random_state=0)
    sampler = face.SMOTE(random_state=0)
    sampler.fit_resample(X, y)
    new = list(sampler.sampling_strategy_.values())
    gaps = sampler.sample_info_.gap[: new[0]], sampler.sample_info_.gap[new[0] :]
    shortest = min(new)
    assert not np.allclose(gaps[0][:shortest], gaps[1][:shortest])


def test_sparse_rows_are_refused_where_their_values_are_needed():
    from scipy import sparse

    X, y = make_classification(n_samples=60, weights=[0.8], random_state=0)
    with pytest.raises(TypeError, match="dense data is required"):
        face.SMOTE().fit_resample(sparse.csr_matrix(X), y)
    assert not face.SMOTE().__sklearn_tags__().input_tags.sparse
    assert face.RandomUnderSampler().fit_resample(sparse.csr_matrix(X), y)[0].shape[1] == X.shape[1]


def test_without_the_extra_the_error_names_it():
    code = "import sys; sys.modules['imblearn'] = None; import imbloss; import imbloss.sampling.imblearn"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "pip install imbloss[sklearn]" in result.stderr
