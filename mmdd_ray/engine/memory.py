"""How much memory a process took, and what a user can do where it is full, said in one sentence."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CPU_ALLOCATOR = "DefaultCPUAllocator"  # of torch, which raises a bare RuntimeError for it
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss: macOS counts bytes, Linux KiB


def peak_bytes() -> int:
    """The most memory that this process has held since it started, in bytes.

    Where it uses a GPU, what torch reserved of it, to which the CUDA context comes (some hundred MB). Elsewhere its
    resident memory, in which pages count that it shares with others, and tasks that the process worked off before.
    """
    torch = sys.modules.get("torch")  # a process that has not imported it has nothing on a GPU
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


@contextmanager
def out_of_memory(setting: str) -> Iterator[None]:
    """Turns an out-of-memory error inside the block into one that names the setting to lower.

    Raises:
        UserError: The GPU or the machine had too little memory.
    """
    import torch  # 2 s, which drivers that import users of this module need not pay

    from mmdd_ray.errors import UserError

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise UserError(
                f"the GPU ran out of memory; lower {setting}, or let fewer processes share a GPU"
            ) from error
        if isinstance(error, MemoryError) or CPU_ALLOCATOR in str(error):
            raise UserError(
                f"the machine ran out of memory; lower {setting}, or let fewer processes share a machine"
            ) from error
        raise
