"""Choosing what computes, for tests and comparisons."""

from collections.abc import Iterator
from contextlib import contextmanager

from imbloss import _ops


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Compute with one backend inside a ``with`` block.

    Args:
        name: "auto" (the best there is for a tensor's device), "cpp" (the compiled core, CPU only), "triton" (GPUs; the
            CPU only with TRITON_INTERPRET=1 in the environment, slowly) or "reference" (plain PyTorch). Elsewhere than
            on its devices a backend leaves the work to the reference.

    Raises:
        ValueError: an unknown name.
        RuntimeError: "cpp" where no compiled core is installed, "triton" where triton is not.

    >>> with backend("reference"):
    ...     imbloss.focal_loss(torch.zeros(1, 4), torch.tensor([0]))
    tensor(0.7798)
    """
    before = _ops.set_backend(name)
    try:
        yield
    finally:
        _ops.set_backend(before)
