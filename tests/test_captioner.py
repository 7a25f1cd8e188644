"""Captioners with a chat template: what they are asked, what is kept of the answer, and whose random numbers."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_llava import write_llava
from tiny_qwen import write_qwen

from mmdd_ray.models import zoo
from mmdd_ray.models.captioners.transformers_model import TransformersCaptioner

QUESTIONS = ("what is this", "describe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    write_llava(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(folder: Path) -> TransformersCaptioner:
    return TransformersCaptioner(str(folder), torch.device("cpu"), "captions.model")


@pytest.fixture
def generated(
    captioner: TransformersCaptioner, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[dict[str, Any], torch.Tensor]]:
    """Inputs and output of each call of the model."""
    calls: list[tuple[dict[str, Any], torch.Tensor]] = []
    generate = captioner.model.generate

    def watched(**inputs: Any) -> torch.Tensor:
        calls.append((inputs, generate(**inputs)))
        return calls[-1][1]

    monkeypatch.setattr(captioner.model, "generate", watched)
    return calls


def pictures(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, size=(20, 24, 3), dtype=np.uint8)) for _ in range(n)]


def write(
    captioner: TransformersCaptioner, captions: int, seed: int | tuple[int, ...] = 0, n: int = 2
) -> list[list[str]]:
    return captioner.write(pictures(n), captions, instructions=QUESTIONS, max_new_tokens=6, seed=seed)


def test_a_chat_model_is_asked_each_instruction_in_turn_and_only_its_answer_is_kept(
    captioner: TransformersCaptioner, generated: list[tuple[dict[str, Any], torch.Tensor]]
) -> None:
    assert captioner.chats
    written = write(captioner, 3)
    for number, (inputs, tokens) in enumerate(generated):
        asked = captioner.processor.batch_decode(inputs["input_ids"], skip_special_tokens=True)
        assert asked == [f"user {QUESTIONS[number % 2]} assistant"] * 2
        assert inputs["pixel_values"].shape == (2, 3, 16, 16)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        kept = captioner.processor.batch_decode(answers, skip_special_tokens=True)
        assert [texts[number] for texts in written] == [" ".join(text.split()) for text in kept]
    # the first answer to each question is the likeliest, the second one is drawn
    assert [inputs["do_sample"] for inputs, _ in generated] == [False, False, True]


def test_each_image_may_have_a_question_of_its_own(
    captioner: TransformersCaptioner, generated: list[tuple[dict[str, Any], torch.Tensor]]
) -> None:
    texts = captioner.describe(pictures(2), QUESTIONS, max_new_tokens=4)
    ((inputs, _),) = generated
    asked = captioner.processor.batch_decode(inputs["input_ids"], skip_special_tokens=True)
    assert asked == [f"user {question} assistant" for question in QUESTIONS]
    assert not inputs["do_sample"]
    assert len(texts) == 2


def test_questions_are_padded_on_the_left_without_a_warning(
    captioner: TransformersCaptioner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[dict[str, Any]] = []
    processor = type(captioner.processor)
    call = processor.__call__

    def watched(self: Any, **arguments: Any) -> Any:
        seen.append(arguments)
        return call(self, **arguments)

    monkeypatch.setattr(processor, "__call__", watched)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    write(captioner, 1)
    assert [(arguments["padding"], arguments["padding_side"]) for arguments in seen] == [(True, "left")]
    assert "processor_kwargs" not in caplog.text


def test_drawn_captions_have_streams_of_their_own(
    captioner: TransformersCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[int] = []
    manual_seed = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda seed: (streams.append(seed), manual_seed(seed))[1])
    for seed in (
        (0, 0),
        (0, 1),
        (1, 0),
    ):  # with sums of seed, batch and number, these three would share theirs
        write(captioner, 4, seed, n=1)
    assert len(set(streams)) == 3 * 4

    one, same, other = (write(captioner, 4, seed) for seed in ((0, 0), (0, 0), (0, 1)))
    assert one == same
    assert [own[:2] for own in one] == [own[:2] for own in other]  # greedy
    assert [own[2:] for own in one] != [own[2:] for own in other]


def test_a_chat_model_that_sees_images_of_any_side_answers_each_by_itself(tmp_path: Path) -> None:
    """Qwen3-VL, whose images have as many tokens as they are large; those of a batch are one list of patches."""
    write_qwen(tmp_path)
    says = zoo.check({"captions.model": str(tmp_path)})["captions.model"]
    assert says.endswith("Qwen3VLForConditionalGeneration of transformers")
    captioner = TransformersCaptioner(str(tmp_path), torch.device("cpu"), "captions.model")
    assert captioner.chats
    small, large = pictures(1)[0], pictures(2)[1].resize((48, 40))
    together = captioner.describe([small, large], QUESTIONS, max_new_tokens=6)
    alone = [
        captioner.describe([image], [question], max_new_tokens=6)[0]
        for image, question in zip((small, large), QUESTIONS, strict=True)
    ]
    assert together == alone
    assert all(together)
    written = captioner.write([small, large], 4, instructions=QUESTIONS, max_new_tokens=6, seed=(0, 1))
    assert written == captioner.write(
        [small, large], 4, instructions=QUESTIONS, max_new_tokens=6, seed=(0, 1)
    )
    assert len({tuple(own) for own in written}) == 2
