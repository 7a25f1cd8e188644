"""Devices: where a process computes is Ray's choice, read in one place; and threads of the CPU."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def own_device() -> "torch.device":
    """The device of this process: the GPU that Ray lent it, or else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def moved(values: "torch.Tensor", device: "torch.device | str") -> "torch.Tensor":
    """On a device; the copy to a GPU goes on while this process prepares what comes next."""
    import torch

    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def device_with(resources: Mapping[str, object]) -> str:
    """The device of a task that is started with these options of Ray's."""
    return "cuda" if resources["num_gpus"] else "cpu"


@contextmanager
def one_thread() -> Iterator[None]:
    """Has torch compute in one thread of the CPU, as it does in an actor or a task of one CPU."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
