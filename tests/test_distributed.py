"""Several processes that share a batch compute what one process does: gloo, rendezvous by a file."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import imbloss

CLASSES = 7
SHARDS = {2: (5, 19), 3: (11, 0, 13), 4: (1, 14, 0, 9)}  # rows of each process


def data(dtype, rows=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator, dtype=torch.float64).to(dtype)
    y = torch.randint(0, CLASSES - 1, (rows,), generator=generator)  # the last class is never there
    y[3::8] = -100
    return x, y


def prior():
    return torch.softmax(torch.linspace(0, -3, CLASSES, dtype=torch.float64), 0)


def network(dtype):
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, CLASSES)).to(dtype)


def lade(estimator, **keywords):
    return lambda z, y, group: imbloss.lade_loss(
        z, y, prior=prior(), alpha=0.5, lam=0.3, estimator=estimator, group=group, **keywords
    )


LOSSES = {
    "official": lade("official"),
    "paper": lade("paper"),
    "sum": lade("official", reduction="sum"),
    "normalizer": lade("paper", normalizer=17.0),
    "regulariser": lambda z, y, group: imbloss.lader(z, y, prior=prior(), group=group),
    "module": lambda z, y, group: imbloss.LADELoss(prior=prior(), group=group)(z, y),
    "focal by positives": lambda z, y, group: imbloss.focal_loss(
        z, y, normalizer=imbloss.positive_count(y, group=group)
    ),
    "focal by valid rows": lambda z, y, group: imbloss.focal_loss(z, y, normalizer=imbloss.valid_count(y, group=group)),
    "weighted by valid rows": lambda z, y, group: imbloss.cross_entropy(
        z, y, weight=1 + prior().to(z.dtype), normalizer=imbloss.valid_count(y, weight=1 + prior(), group=group)
    ),
}
SHARES_ITS_VALUE = [name for name in LOSSES if "by" not in name]


def shard(rank, sizes):
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def processes(rank, sizes, rendezvous, results):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(sizes), timeout=timedelta(seconds=120)
    )
    group = dist.group.WORLD
    mine, out = shard(rank, sizes), {}
    for dtype in (torch.float64, torch.float32):
        x, y = (t[mine] for t in data(dtype))
        for name, loss in LOSSES.items():
            for backend in ("auto", "reference"):
                model = DistributedDataParallel(network(dtype))
                with imbloss.testing.backend(backend):
                    value = loss(model(x), y, group)
                    value.backward()
                out[name, dtype, backend] = value.detach(), [p.grad for p in model.parameters()]
    out["steps"] = train(DistributedDataParallel(network(torch.float32)), mine, group)
    tracker = imbloss.PriorTracker(CLASSES, group=group)
    for seed in range(3):
        out["tracker"] = tracker(data(torch.float32, seed=seed)[1][mine])
    out["counts"] = imbloss.positive_count(y, group=group), imbloss.valid_count(y, group=group)
    torch.save(out, f"{results}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def train(model, mine, group):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for step in range(20):
        x, y = (t[mine] for t in data(torch.float32, seed=step))
        optimizer.zero_grad()
        LOSSES["paper" if step % 2 else "official"](model(x), y, group).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


@pytest.fixture(scope="module", params=SHARDS, ids=lambda n: f"{n} processes")
def shared(request, tmp_path_factory):
    folder, sizes = tmp_path_factory.mktemp("gloo"), SHARDS[request.param]
    mp.spawn(processes, (sizes, str(folder / "rendezvous"), str(folder)), nprocs=len(sizes))
    return sizes, [torch.load(folder / f"{rank}.pt") for rank in range(len(sizes))]


TOLERANCE = {torch.float64: {"rtol": 1e-12, "atol": 1e-12}, torch.float32: {"rtol": 1e-4, "atol": 1e-6}}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_averaged_gradients_are_those_of_one_process(shared, name, dtype, backend):
    _, results = shared
    x, y = data(dtype)
    model = network(dtype)
    want = LOSSES[name](model(x), y, None)
    want.backward()
    grads = [p.grad for p in model.parameters()]
    values = [result[name, dtype, backend][0] for result in results]
    if name in SHARES_ITS_VALUE:
        for value in values:
            torch.testing.assert_close(value, want.detach(), **TOLERANCE[dtype])
    else:  # each process has the loss of its rows, whose mean is that of all
        torch.testing.assert_close(torch.stack(values).mean(), want.detach(), **TOLERANCE[dtype])
    for result in results:
        torch.testing.assert_close(result[name, dtype, backend][1], grads, **TOLERANCE[dtype])


def test_twenty_steps_of_training_end_in_the_same_weights(shared):
    _, results = shared
    want = train(network(torch.float32), slice(None), None)
    for result in results:
        torch.testing.assert_close(result["steps"], want, rtol=0, atol=1e-5)


def test_a_shared_prior_is_that_of_all_labels(shared):
    _, results = shared
    tracker = imbloss.PriorTracker(CLASSES)
    for seed in range(3):
        want = tracker(data(torch.float32, seed=seed)[1])
    for result in results:
        assert torch.equal(result["tracker"], want)


def test_counts_are_those_of_all_processes_over_their_number(shared):
    sizes, results = shared
    _, y = data(torch.float32)
    for result in results:
        positives, valid = result["counts"]
        assert positives.item() * len(sizes) == pytest.approx((y > 0).sum().item())
        assert valid.item() * len(sizes) == pytest.approx((y != -100).sum().item())


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
    yield torch.randn(8, 4, requires_grad=True), torch.randint(0, 4, (8,)), torch.full((4,), 0.25), dist.group.WORLD
    dist.destroy_process_group()


def test_a_group_of_one_is_no_group(alone):
    x, y, weight, group = alone
    for estimator in ("official", "paper"):
        results = []
        for g in (None, group):
            value = imbloss.lade_loss(x, y, prior=weight, estimator=estimator, group=g)
            results.append((value.detach(), torch.autograd.grad(value * 3, x)[0]))
        torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-8)


def test_the_gradient_of_a_gradient_is_refused_with_a_group(alone):
    x, y, weight, group = alone
    value = imbloss.lader(x, y, prior=weight, group=group)
    with pytest.raises(RuntimeError, match="expected no gradient of a gradient beside group"):
        torch.autograd.grad(value, x, create_graph=True)


def test_a_prior_that_learns_is_refused_with_a_group(alone):
    x, y, weight, group = alone
    with pytest.raises(ValueError, match="expected no gradient of prior beside group"):
        imbloss.lader(x, y, prior=weight.requires_grad_(), group=group)


def test_no_collective_runs_in_backward(alone, monkeypatch):
    x, y, weight, group = alone
    calls = []
    all_reduce = dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda t, *a, **k: (calls.append(t.numel()), all_reduce(t, *a, **k)))
    value = imbloss.lade_loss(x, y, prior=weight, group=group)
    assert calls == [4, 3 * 4 + 2]  # O(C), whatever the rows
    value.backward()
    assert len(calls) == 2
