"""Room for what a report keeps: batches are copied into large blocks, which numpy lays in huge pages on Linux.

In small pieces of new memory, the page faults take several times as long as the copying.
"""

import numpy as np
import torch
from torch import Tensor

SIZE = 2**22  # float32 numbers of a block, 16 MB


class Blocks:
    """Copies of float tensors as float32. A copy or a pickle begins with no room of its own."""

    def __init__(self) -> None:
        self.room = torch.empty(0)

    def __reduce__(self) -> tuple:
        return Blocks, ()

    def keep(self, values: Tensor) -> Tensor:
        number = values.numel()
        if values.device.type != "cpu":
            return values.to(torch.float32, copy=True)
        if self.room.numel() < number:
            self.room = torch.from_numpy(np.empty(max(number, SIZE), np.float32))
        kept = self.room[:number].view(values.shape).copy_(values)
        self.room = self.room[number:]
        return kept
