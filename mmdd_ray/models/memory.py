"""What a user can do about full memory, said in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

CPU_ALLOCATOR = "DefaultCPUAllocator"  # of torch, which raises a bare RuntimeError for it


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
