"""The tests that scikit-learn and imbalanced-learn ship in their wheels pass when imbloss computes the numbers."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from imblearn.metrics import geometric_mean_score
from published_metrics import TESTS

from imbloss import metrics
from imbloss.metrics import functional

HERE = Path(__file__).parent


@pytest.mark.parametrize("module", TESTS)
def test_published_tests_pass(module, tmp_path):
    options = "-q", "-p", "published_metrics", "-p", "no:cacheprovider", "-c", str(tmp_path / "none.ini"), "-rA"
    (tmp_path / "none.ini").write_text("[pytest]\n")
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = sys.executable, "-c", code, *options, "--pyargs", module
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    passed = set(re.findall(r"^PASSED .*::(\w+)", result.stdout, re.MULTILINE))
    assert passed == set(TESTS[module])


def test_a_weight_is_a_repetition():
    """Why one case is left out: imbalanced-learn's weighted specificity is not that of repeated samples."""
    y_true, y_pred, weight = np.array([[0, 1, 2, 0, 1, 2], [0, 1, 1, 0, 0, 1], [1, 2, 1, 1, 2, 1]])
    repeated = y_true.repeat(weight), y_pred.repeat(weight)
    keywords = {"labels": [0, 1], "average": "weighted"}
    assert geometric_mean_score(y_true, y_pred, sample_weight=weight, **keywords) == pytest.approx(0.3333, abs=1e-4)
    assert geometric_mean_score(*repeated, **keywords) == pytest.approx(0.6086, abs=1e-4)
    target, answer = torch.tensor(y_true), torch.tensor(y_pred)
    counts = metrics.counts(answer, target, sample_weight=torch.tensor(weight)).of([0, 1])
    assert float(functional.geometric_mean_of(counts, "weighted")) == pytest.approx(0.6086, abs=1e-4)
