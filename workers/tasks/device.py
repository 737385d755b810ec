"""Stored values on their way to where the network computes."""

from typing import Any

import numpy as np


def staged(values: np.ndarray, device: Any) -> Any:
    """A tensor of the values on a torch device, in their stored type.

    To a GPU they go through pinned memory, on the stream of the lane that calls it, while another lane's network computes.
    """
    import torch

    there = torch.from_numpy(values)
    return there if torch.device(device).type == "cpu" else there.pin_memory().to(device, non_blocking=True)
