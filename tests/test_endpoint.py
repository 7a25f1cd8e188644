"""Captions from a server: of `transformers serve`, and of servers that are busy, broken or unwilling."""

import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tiny_llava import write_llava

from mmdd_ray.config import Data
from mmdd_ray.data.shards import list_shards
from mmdd_ray.distilled.licences import model_licence
from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.features.chunks import read_chunks
from mmdd_ray.methods.edge.recaption import Recaptioner, read_captions, recaption
from mmdd_ray.methods.edge.settings import Captions
from mmdd_ray.methods.vlcp.describe import Describer
from mmdd_ray.methods.vlcp.settings import Describe
from mmdd_ray.models import zoo
from mmdd_ray.models.captioners import endpoint
from mmdd_ray.models.captioners.captioner import load_captioner
from mmdd_ray.models.captioners.endpoint import EndpointCaptioner, check_endpoint
from mmdd_ray.storage.store import Store


class Server:
    """Answers requests as told, one after the other, and then with "a disc"; keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any] | None] = []  # None breaks the connection off
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models: tuple[int, Any] = (200, {"object": "list", "data": [{"id": "eyes", "object": "model"}]})
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.headers.append({name.lower(): value for name, value in self.headers.items()})
                self.say(*server.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    server.asked.append(body)
                    answer = server.answers.pop(0) if server.answers else (200, said("a disc"))
                if answer is None:
                    self.connection.close()
                    return
                self.say(*answer)

            def say(self, status: int, body: Any) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.name = f"openai:eyes@{self.url}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


def said(text: str | None, **choice: Any) -> dict[str, Any]:
    """An answer of a server."""
    message = {"role": "assistant", "content": text} | choice.pop("message", {})
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "eyes",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"} | choice],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def pictures(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)) for _ in range(n)]


def test_each_image_is_asked_for_with_its_own_instruction(server: Server) -> None:
    captioner = load_captioner(server.name, torch.device("cpu"))
    images = pictures(3)
    assert captioner.describe(images, ["one", "two", "three"], max_new_tokens=7) == ["a disc"] * 3
    asked = {one["messages"][0]["content"][1]["text"]: one for one in server.asked}
    assert asked.keys() == {"one", "two", "three"}
    for text, image in zip(("one", "two", "three"), images, strict=True):
        url = asked[text]["messages"][0]["content"][0]["image_url"]["url"]
        sent = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
        np.testing.assert_array_equal(np.asarray(sent), np.asarray(image))
        assert (asked[text]["model"], asked[text]["max_tokens"], asked[text]["temperature"]) == ("eyes", 7, 0)
    assert captioner.tokens == (30, 9)


def test_the_first_caption_of_an_instruction_is_the_likeliest_and_others_are_drawn(server: Server) -> None:
    captioner = EndpointCaptioner(server.name, "captions.model")
    written = captioner.write(pictures(2), 3, instructions=["a", "b"], max_new_tokens=5, seed=(1, 2))
    assert written == [["a disc"] * 3] * 2
    found = [
        (one["messages"][0]["content"][1]["text"], one["temperature"], one["seed"]) for one in server.asked
    ]
    assert sorted({(text, temperature) for text, temperature, _ in found}) == [("a", 0), ("a", 1), ("b", 0)]
    assert len({seed for *_, seed in found}) == 3  # the streams of the three captions


@pytest.mark.parametrize(
    "trouble", [(408, {}), (409, {}), (429, {}), (500, {}), (503, {"error": "busy"}), None]
)
def test_what_passes_is_asked_again(server: Server, trouble: tuple[int, Any] | None) -> None:
    server.answers = [trouble, trouble]
    captioner = EndpointCaptioner(server.name, "captions.model")
    assert captioner.describe(pictures(1), ["what"], max_new_tokens=5) == ["a disc"]
    assert len(server.asked) == 3


@pytest.mark.parametrize("trouble", [(408, {}), (409, {}), (429, {}), (503, {}), None])
def test_what_does_not_pass_can_be_resumed(server: Server, trouble: tuple[int, Any] | None) -> None:
    server.answers = [trouble] * 20
    captioner = EndpointCaptioner(server.name, "captions.model")
    with pytest.raises(StorageError, match=r"^--captions.model openai:eyes@http.* failed 7 times"):
        captioner.describe(pictures(1), ["what"], max_new_tokens=5)
    assert len(server.asked) == endpoint.RETRIES + 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((400, {"error": {"message": "no images here"}}), "refuses: .*no images here"),
        ((404, {"error": {"message": "no such model"}}), "refuses: .*no such model"),
        ((200, {"error": {"message": "out of memory"}}), "gives no answer, but .*out of memory"),
    ],
)
def test_a_mistake_is_one_sentence_and_not_asked_again(server: Server, answer: Any, says: str) -> None:
    server.answers = [answer]
    with pytest.raises(UserError, match=says):
        EndpointCaptioner(server.name, "captions.model").describe(pictures(1), ["what"], max_new_tokens=5)
    assert len(server.asked) == 1


def test_answers_that_are_empty_or_refused_are_blank_and_counted(
    server: Server, ray_cluster: None, tmp_path: Path
) -> None:
    server.answers = [
        (200, said(None)),
        (200, said(" a  red\ndisc ")),
        (200, said(None, message={"refusal": "I would rather not"})),
        (200, said("half of", finish_reason="content_filter")),
    ]
    png = io.BytesIO()
    pictures(1)[0].save(png, "PNG")
    stage = StageDir("recaption", Store(str(tmp_path)), "recaption")
    settings = Captions(model=server.name, per_image=2, batch_images=4)
    rows = [{"index": index, "image": png.getvalue()} for index in range(5)]
    for number in (0,):  # an actor of Ray does the other batch
        Recaptioner(stage.store, settings, 0)(
            pa.table({"number": [number], "rows": [rows[4 * number : 4 * number + 4]]})
        )
    found = recaption(stage, {row["index"]: row["image"] for row in rows}, settings, seed=0)
    assert found == {"blank_captions": 3, "prompt_tokens": 50, "completion_tokens": 15}
    texts = [text for own in read_captions(stage.store).values() for text in own]
    assert sorted(texts) == ["", "", "", "a disc", "a red disc"]


def test_a_chunk_of_descriptions_notes_its_tokens(server: Server, tmp_path: Path) -> None:
    store, data = Store(str(tmp_path)), Data(uri="shapes:3?labelled=1")
    describer = Describer(store, Describe(source="vlm", model=server.name), dict.fromkeys(range(48), "disc"))
    (chunk,) = read_chunks(list_shards(data)[0], data, image_px=8, chunk_pairs=4)
    describer(pa.Table.from_pylist([chunk.to_row()]))
    (file,) = store.files("pairs")
    assert json.loads(store.parquet_metadata(file)[b"tokens"]) == [30, 9]
    assert store.read_parquet(file)["description"].to_pylist() == ["a disc"] * 3


def test_a_server_is_looked_at_before_the_run(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")
    assert zoo.check({"captions.model": server.name}) == {"captions.model": f"eyes at {server.url}"}
    assert server.headers[-1]["authorization"] == "Bearer a-secret"
    assert zoo.version(server.name) is None
    with pytest.raises(UserError, match=r"^--captions.model: .* has no model 'ears', but eyes$"):
        zoo.check({"captions.model": server.name.replace("eyes", "ears")})
    server.models = (401, {"error": {"message": "who are you"}})
    with pytest.raises(UserError, match="refuses the key; set OPENAI_API_KEY"):
        check_endpoint(server.name, "captions.model")


def test_a_server_that_does_not_list_its_models_is_asked_about_a_pixel(server: Server) -> None:
    server.models = (404, {})
    assert check_endpoint(server.name, "captions.model") == f"eyes at {server.url}"
    (asked,) = server.asked
    assert (asked["model"], asked["max_tokens"]) == ("eyes", 1)
    server.answers = [(404, {"detail": "Not Found"})]
    with pytest.raises(
        UserError, match=r"no server of chat completions answers .*does its address end in /v1\?"
    ):
        check_endpoint(server.name, "captions.model")


@pytest.mark.parametrize("page", ["<html>", [1]])
def test_an_answer_that_is_no_completion_is_one_sentence(server: Server, page: Any) -> None:
    server.models = (200, page)
    with pytest.raises(UserError, match="no server of chat completions answers"):
        check_endpoint(server.name, "captions.model")
    server.answers = [(200, page)]
    with pytest.raises(UserError, match="gives no answer, but"):
        EndpointCaptioner(server.name, "captions.model").describe(pictures(1), ["what"], max_new_tokens=5)


def test_a_server_is_asked_for_captions_alone(server: Server) -> None:
    with pytest.raises(
        UserError, match=r"--finetune.generator .* a server is asked for captions alone; name a generator"
    ):
        zoo.check({"finetune.generator": server.name})


def test_the_card_of_a_set_does_not_tell_where_the_server_is() -> None:
    name = zoo.public_name("openai:Qwen/Qwen3-VL-8B-Instruct@http://10.0.0.7:8000/v1")
    assert name == "Qwen/Qwen3-VL-8B-Instruct (a server's)"
    assert model_licence(name) == "Apache-2.0"


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(
        UserError, match=r"--describe.model: no server of chat completions answers at http://127"
    ):
        zoo.check({"describe.model": f"openai:eyes@http://127.0.0.1:{port}/v1"})


@pytest.mark.parametrize(
    "name", ["openai:eyes", "openai:@http://a/v1", "openai:eyes@ftp://a", "openai:eyes@a:80"]
)
def test_a_name_without_model_or_address_is_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match=r"is no openai:MODEL@URL, as openai:llava@http://localhost:8000/v1"):
        zoo.check({"captions.model": name})


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_server_of_transformers_answers_as_the_model_does(tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    write_llava(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).parent / "transformers", "serve", str(folder), "--host", "127.0.0.1"]
    log = (tmp_path / "log").open("w")
    serving = subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu"],
        stdout=log,
        stderr=log,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        until = time.monotonic() + 200
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                assert serving.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.5)
        served = load_captioner(f"openai:{folder}@http://127.0.0.1:{port}/v1", torch.device("cpu"))
        own = load_captioner(str(folder), torch.device("cpu"))
        questions = ["what is this", "describe it"]
        asked = pictures(2), questions
        assert served.describe(*asked, max_new_tokens=6) == own.describe(*asked, max_new_tokens=6)
        assert served.tokens[1] > 0
    finally:
        serving.terminate()
        serving.wait(30)
