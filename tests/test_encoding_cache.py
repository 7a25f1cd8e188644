import numpy as np
import pytest
import torch
from torch import Tensor

from mmdd_ray.models.encoding_cache import EncodingCache


class Encoder:
    """Doubles numbers, 4 bytes each, and counts the batches that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, numbers: list[int]) -> tuple[Tensor, ...]:
        self.asked.append(numbers)
        return (2 * torch.tensor(numbers, dtype=torch.float32),)


def ask(cache: EncodingCache, encoder: Encoder, numbers: list[int], kind: str = "double") -> list[float]:
    (found,) = cache.of_keys(kind, numbers, lambda: encoder(numbers))
    return found.tolist()


def test_a_batch_is_encoded_once_whatever_the_order_of_its_rows():
    cache, encoder = EncodingCache(1000), Encoder()
    for numbers in ([1, 2, 3], [4, 5, 6], [6, 1, 5], [3, 3, 2]):
        assert ask(cache, encoder, numbers) == [2 * number for number in numbers]
    assert encoder.asked == [[1, 2, 3], [4, 5, 6]]


def test_a_batch_with_a_new_row_is_encoded_whole():
    cache, encoder = EncodingCache(1000), Encoder()
    for numbers in ([1, 2], [2, 3], [3, 1]):
        ask(cache, encoder, numbers)
    assert encoder.asked == [[1, 2], [2, 3]]


def test_a_change_of_what_was_given_changes_nothing_that_is_kept():
    cache, encoder = EncodingCache(1000), Encoder()
    cache.of_keys("double", [1, 2], lambda: encoder([1, 2]))[0].zero_()
    cache.of_keys("double", [1, 2], lambda: encoder([1, 2]))[0].zero_()
    assert ask(cache, encoder, [1, 2]) == [2, 4]


def test_nothing_is_kept_in_part():
    cache, encoder = EncodingCache(5 * 4), Encoder()
    for numbers in ([1, 2, 3], [1, 2, 3], [4, 5, 6], [1, 2, 3]):  # the third batch is too much
        ask(cache, encoder, numbers)
    assert encoder.asked == [[1, 2, 3], [4, 5, 6], [1, 2, 3]]


def test_the_kind_that_holds_the_most_is_given_up_first():
    cache, small, large = EncodingCache(30 * 4), Encoder(), Encoder()

    def wide(numbers: list[int]) -> tuple[Tensor, ...]:
        return (large(numbers)[0][:, None].expand(-1, 10),)

    for numbers in ([1, 2], [3, 4], [1, 2], [3, 4]):
        ask(cache, small, numbers)
        (found,) = cache.of_keys("wide", numbers, lambda numbers=numbers: wide(numbers))
        assert found.shape == (2, 10)
    assert len(small.asked) == 2
    assert len(large.asked) == 4


def test_no_memory_keeps_nothing():
    cache, encoder = EncodingCache(0), Encoder()
    assert ask(cache, encoder, [1]) == ask(cache, encoder, [1]) == [2]
    assert len(encoder.asked) == 2


@pytest.mark.parametrize("as_tensor", [False, True])
def test_images_are_known_by_their_pixels(as_tensor):
    cache, asked = EncodingCache(10_000), []
    images = np.random.default_rng(0).integers(0, 255, size=(4, 2, 2, 3), dtype=np.uint8)

    def look(batch: np.ndarray) -> Tensor:
        def encode() -> tuple[Tensor, ...]:
            asked.append(len(batch))
            return (torch.tensor(batch).float().mean(dim=(1, 2)),)

        (found,) = cache.of_images("mean", torch.tensor(batch) if as_tensor else batch, encode)
        return found

    expected = look(images)
    assert torch.equal(look(images[::-1].copy()), expected.flip(0))
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    assert not torch.equal(look(changed), expected)
    assert asked == [4, 4]


def test_all_parts_of_an_encoding_are_kept():
    cache = EncodingCache(10_000)
    parts = torch.arange(6.0).view(3, 2), torch.arange(3)
    cache.of_keys("two", "abc", lambda: parts)
    first, second = cache.of_keys("two", "cab", lambda: pytest.fail("they are kept"))
    assert torch.equal(first, parts[0][[2, 0, 1]])
    assert torch.equal(second, parts[1][[2, 0, 1]])
