"""A captioner behind an endpoint that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, `transformers serve`.

Named ``openai:MODEL@URL``, as ``openai:Qwen/Qwen3-VL-8B-Instruct@http://10.0.0.7:8000/v1``. A key is taken from
OPENAI_API_KEY, and never stored. A server's answers cannot be had again, to the letter: they are kept as they came.

Requests that time out, are refused for a while (408, 409, 429, 5xx) or break off are sent again, later and later.
"""

import asyncio
import base64
import io
import os
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.storage.redact import redact

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

PREFIX = "openai:"
MAX_CONCURRENT_REQUESTS = 32  # of one actor
RETRIES = 6  # of a request, half a second to eight seconds apart
TIMEOUT_S = 300.0  # of a request: a server may let it wait behind many others
PREFLIGHT_TIMEOUT_S = 10.0
RETRIED = (408, 409)  # beside 429 and 5xx, which have errors of their own
KEY = "OPENAI_API_KEY"


class Endpoint(NamedTuple):
    """A model of a server."""

    model: str
    url: str

    @classmethod
    def of(cls, name: str, setting: str) -> "Endpoint":
        """Reads ``openai:MODEL@URL``; raises ``UserError`` where it is none."""
        model, at, url = name.removeprefix(PREFIX).rpartition("@")
        if not (model and at and url.startswith(("http://", "https://"))):
            raise UserError(
                f"--{setting} {redact(name)} is no openai:MODEL@URL, as openai:llava@http://localhost:8000/v1; a key "
                f"belongs into {KEY}"
            )
        return cls(model, url)


def check_endpoint(name: str, setting: str) -> str:
    """Asks a server for its models, or where it does not list them for a word about a pixel; gives a description.

    Raises:
        UserError: There is no such server, it wants a key, or has other models.
    """
    openai = _openai(setting)
    model, url = Endpoint.of(name, setting)
    client = openai.OpenAI(base_url=url, api_key=_key(), timeout=PREFLIGHT_TIMEOUT_S, max_retries=1)
    try:
        try:
            served = [one.id for one in client.models.list()]
        except openai.NotFoundError:
            served = []
            pixel = _message(Image.new("RGB", (1, 1)), "?")
            client.chat.completions.create(model=model, messages=[pixel], max_tokens=1)
    except openai.AuthenticationError as error:
        raise UserError(f"--{setting}: {url} refuses the key; set {KEY}") from error
    except (
        openai.APIError,
        AttributeError,
        ValueError,
    ) as error:  # the last two of an answer that is no JSON
        raise UserError(
            f"--{setting}: no server of chat completions answers at {url} ({error}); does its address end in /v1?"
        ) from error
    if served and model not in served:
        raise UserError(f"--{setting}: {url} has no model {model!r}, but {', '.join(served[:5])}")
    return f"{model} at {url}"


def _openai(setting: str) -> Any:
    try:
        import openai
    except ImportError as error:
        raise UserError(
            f'--{setting} names a server, which needs: pip install "mmdd_ray[endpoint]"'
        ) from error
    return openai


def _message(image: Image.Image, instruction: str) -> Any:
    """A question about an image."""
    data = io.BytesIO()
    image.save(data, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    picture = {"type": "image_url", "image_url": {"url": url}}
    return {"role": "user", "content": [picture, {"type": "text", "text": instruction}]}


def _key() -> str:
    return os.environ.get(KEY) or "none"  # servers of one's own ask for none


class EndpointCaptioner:
    """A ``Captioner``."""

    def __init__(self, name: str, setting: str) -> None:
        self._endpoint = Endpoint.of(name, setting)
        self._setting = setting
        self._read = self._written = 0

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens that the server says it has read and written for this captioner."""
        return self._read, self._written

    def write(
        self,
        images: Sequence[Image.Image],
        captions: int,
        *,
        instructions: Sequence[str],
        max_new_tokens: int,
        seed: int | tuple[int, ...],
    ) -> list[list[str]]:
        """See ``Captioner``; blank where the server has no answer, or refuses to give one."""
        streams = np.random.SeedSequence(seed).generate_state(captions)
        asked = [
            {
                "image": image,
                "instruction": instructions[number % len(instructions)],
                "temperature": 0.0 if number < len(instructions) else 1.0,
                "seed": int(streams[number]),
            }
            for image in images
            for number in range(captions)
        ]
        texts = self._answers(asked, max_new_tokens)
        return [texts[start : start + captions] for start in range(0, len(texts), captions)]

    def describe(
        self, images: Sequence[Image.Image], instructions: Sequence[str], *, max_new_tokens: int
    ) -> list[str]:
        """See ``Captioner``; blank where the server has no answer, or refuses to give one."""
        asked = [
            {"image": image, "instruction": instruction, "temperature": 0.0, "seed": 0}
            for image, instruction in zip(images, instructions, strict=True)
        ]
        return self._answers(asked, max_new_tokens)

    def _answers(self, asked: Sequence[dict[str, Any]], max_new_tokens: int) -> list[str]:
        return asyncio.run(self._ask_all(asked, max_new_tokens))

    async def _ask_all(self, asked: Sequence[dict[str, Any]], max_new_tokens: int) -> list[str]:
        from openai import AsyncOpenAI

        waiting = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)

        async def one(question: dict[str, Any]) -> str:
            async with waiting:
                return await self._ask(client, max_new_tokens, **question)

        async with AsyncOpenAI(
            base_url=self._endpoint.url, api_key=_key(), timeout=TIMEOUT_S, max_retries=RETRIES
        ) as client:
            questions: list[Coroutine[Any, Any, str]] = [one(question) for question in asked]
            return await asyncio.gather(*questions)

    async def _ask(
        self,
        client: "AsyncOpenAI",
        max_new_tokens: int,
        *,
        image: Image.Image,
        instruction: str,
        temperature: float,
        seed: int,
    ) -> str:
        import openai

        where = f"--{self._setting} {PREFIX}{self._endpoint.model}@{self._endpoint.url}"
        try:
            found = await client.chat.completions.create(
                model=self._endpoint.model,
                messages=[_message(image, instruction)],
                max_tokens=max_new_tokens,
                temperature=temperature,
                seed=seed,
            )
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
            raise StorageError(f"{where} failed {RETRIES + 1} times: {error}") from error
        except openai.APIError as error:
            if getattr(error, "status_code", None) in RETRIED:
                raise StorageError(f"{where} failed {RETRIES + 1} times: {error}") from error
            raise UserError(f"{where} refuses: {error}") from error
        return self._text_of(found, where)

    def _text_of(self, found: "ChatCompletion", where: str) -> str:
        """The answer; blank where it was refused."""
        if not getattr(found, "choices", None):  # a server that says 200 and means an error
            said = found.to_dict() if hasattr(found, "to_dict") else found
            raise UserError(f"{where} gives no answer, but {str(said)[:200]}")
        if found.usage:
            self._read += found.usage.prompt_tokens
            self._written += found.usage.completion_tokens
        (choice, *_) = found.choices
        if choice.message.refusal or choice.finish_reason == "content_filter":
            return ""
        return " ".join((choice.message.content or "").split())
