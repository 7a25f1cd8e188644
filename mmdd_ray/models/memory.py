"""What a user can do about a full GPU, said in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def out_of_memory(setting: str) -> Iterator[None]:
    """Turns an out-of-memory error of the GPU inside the block into one that names the setting to lower.

    Raises:
        UserError: The GPU had too little memory.
    """
    import torch  # 2 s, which drivers that import users of this module need not pay

    from mmdd_ray.errors import UserError

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU ran out of memory; lower {setting}, or let fewer processes share a GPU"
        ) from error
