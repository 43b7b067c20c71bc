"""What an installed imbloss does with torch, numpy and pytest alone. `make dist` runs this file on the wheel, outside
of the source tree and once for each core."""

import importlib.metadata
import os
from pathlib import Path

import pytest
import torch

import imbloss
from imbloss import _C, doctor, reference


def test_the_version_is_one():
    assert importlib.metadata.version("imbloss") == imbloss.__version__


def test_the_core_that_serves_is_installed_and_the_one_asked_for():
    core = f"_C_{os.environ.get('IMBLOSS_EXPECTED_ISA', _C.isa())}"
    assert _C.loaded() and core == f"_C_{_C.isa()}"
    assert core in {path.name.split(".")[0] for path in Path(imbloss.__file__).parent.glob("_C_*")}
    assert (Path(imbloss.__file__).parent / "py.typed").is_file()


def test_every_softmax_loss_equals_its_reference():
    findings = doctor.examine("cpu")
    assert findings["problems"] == [] and findings["parity"]["checks"] > 20


@pytest.mark.parametrize("name", ["sigmoid_focal_loss", "asymmetric_loss", "quality_focal_loss"])
def test_losses_of_elements_equal_their_references(name):
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(50, 7, generator=generator), torch.rand(50, 7, generator=generator).round()
    found, wanted = x.clone().requires_grad_(), x.double().requires_grad_()
    value = getattr(imbloss, name)(found, t, reduction="mean")
    truth = getattr(reference, name)(wanted, t.double(), reduction="mean")
    value.backward()
    truth.backward()
    torch.testing.assert_close(value.double(), truth, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=1e-4, atol=1e-9)


def test_a_loss_trains_a_rare_class():
    torch.manual_seed(0)
    target = (torch.arange(1000) >= 980).long()
    x = torch.randn(1000, 2) + 2.5 * target[:, None]
    recalls = {}
    for loss in (imbloss.CrossEntropy(), imbloss.BalancedSoftmaxLoss(counts=torch.bincount(target))):
        network = torch.nn.Linear(2, 2)
        optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
        for _ in range(100):
            optimizer.zero_grad()
            loss(network(x), target).backward()
            optimizer.step()
        recalls[type(loss)] = (network(x).argmax(1) == target)[target == 1].double().mean().item()
    assert recalls[imbloss.BalancedSoftmaxLoss] > recalls[imbloss.CrossEntropy] + 0.1


def test_neighbours_and_new_rows():
    points = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    distances, indices = imbloss.knn(points, 3)
    true_distances, true_indices = reference.knn(points.double(), 3)
    assert torch.equal(indices, true_indices)
    torch.testing.assert_close(distances.double(), true_distances, rtol=1e-6, atol=0)
    _, y = imbloss.SMOTE(random_state=0).fit_resample(points, (torch.arange(60) < 10).long())
    assert torch.bincount(y).tolist() == [50, 50]


def test_a_sampler_balances():
    dataset = torch.utils.data.TensorDataset(torch.randn(1000, 1), torch.arange(1000) // 950)
    drawn = dataset.tensors[1][list(imbloss.ImbalancedDatasetSampler(dataset))]
    assert 0.4 < drawn.double().mean() < 0.6
