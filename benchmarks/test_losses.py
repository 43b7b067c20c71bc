"""Forward + backward of the softmax losses, side by side: imbloss, what people write by hand, torch cross entropy.

Read the ratios within a group; a single figure says more about the machine's mood.
"""

import pytest
import torch
import torch.nn.functional as F

import imbloss


def focal_by_hand(logits, target):
    log_p = F.log_softmax(logits, 1).gather(1, target.unsqueeze(1)).squeeze(1)
    return (-((1 - log_p.exp()) ** 2) * log_p).mean()


PROVIDERS = {
    "imbloss": lambda x, y: imbloss.focal_loss(x, y, gamma=2.0),
    "by hand": focal_by_hand,
    "torch cross entropy": F.cross_entropy,
}
SHAPES = [(32, 10), (4096, 10), (1024, 100), (4096, 1000), (512, 32000)]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_focal_loss(benchmark, shape, provider):
    benchmark.group = "focal " + "x".join(map(str, shape))
    logits = torch.randn(shape, requires_grad=True)
    target = torch.randint(0, shape[1], shape[:1])
    loss = PROVIDERS[provider]

    def step():
        logits.grad = None
        loss(logits, target).backward()

    benchmark.pedantic(step, rounds=30, iterations=max(1, 400_000 // logits.numel()), warmup_rounds=3)
