"""Training on two processes that equals training on one: a sampler whose ranks share one stream, LADE over the whole
batch, a gradient scaler and accumulated gradients.

    python examples/ddp.py

trains both ways (gloo, CPU) and says how far apart the weights are. With nccl and GPUs the code is the same.
"""

import contextlib
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

import imbloss
from imbloss.lab import load

BATCH, ACCUMULATE, EPOCHS = 32, 4, 2  # samples of all processes together, batches a step


def train(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    group = None
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
        group = dist.group.WORLD
    data = load("digits", imbalance_ratio=20)
    dataset = TensorDataset(data.x_train.double(), data.y_train)

    sampler = imbloss.ImbalancedDatasetSampler(dataset, strategy="sqrt", num_samples=512)  # rank: the default group's
    loader = DataLoader(dataset, BATCH // processes, sampler=sampler)
    loss = imbloss.LADELoss(prior=sampler.prior(), group=group)  # the prior of what is drawn, not of the data

    torch.manual_seed(0)
    # in double precision, so that what is left of the difference is rounding
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double()
    network = DistributedDataParallel(model) if processes > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for number, (x, y) in enumerate(loader, 1):
            steps = number % ACCUMULATE == 0
            waits = isinstance(network, DistributedDataParallel) and not steps
            with network.no_sync() if waits else contextlib.nullcontext():
                scaler.scale(loss(network(x), y) / ACCUMULATE).backward()
            if steps:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    torch.save(model.state_dict(), f"{folder}/{processes}_{rank}.pt")
    if processes > 1:
        dist.destroy_process_group()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(0, 1, folder)
        mp.spawn(train, (2, folder), nprocs=2)
        one, first, second = (torch.load(Path(folder) / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    apart = max(float((two[name] - one[name]).abs().max()) for two in (first, second) for name in one)
    print(f"one process and two differ by {apart:.1e} after {EPOCHS * 512 // BATCH // ACCUMULATE} steps")
    if not apart < 1e-12:
        raise SystemExit("expected the same weights")


if __name__ == "__main__":
    main()
