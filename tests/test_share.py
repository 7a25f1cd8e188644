"""Sharing a set: a push to a hub on loopback, its licence and Croissant, and exports that other tools read."""

import ast
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import huggingface_hub.constants
import pytest
import yaml
from PIL import Image
from source_files import read
from test_distilled import _samples, _write
from test_learnt import learnt, same

from mmdd_ray.cli import tools
from mmdd_ray.config import Data
from mmdd_ray.distilled.card import limits
from mmdd_ray.distilled.croissant import CONFORMS_TO
from mmdd_ray.distilled.export import Layout, export
from mmdd_ray.distilled.licences import set_licence
from mmdd_ray.distilled.push import push
from mmdd_ray.distilled.read import read_distilled, read_learnt
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.errors import StorageError, UserError
from mmdd_ray.storage.hub import pinned

TARGET = "hf://datasets/me/pairs"
MODELS = {
    "clip": {"name": "tiny-clip", "version": None},
    "captioner": {"name": "tiny-captioner", "version": None},
}
OURS: dict[str, Any] = {"models": MODELS, "settings": {"data": {"uri": "shapes:1000"}}}
"""A set that is Apache-2.0 in all its parts."""


@dataclass
class Hub:
    """A hub on loopback, with this process as its client."""

    folder: Path
    endpoint: str
    environment: dict[str, str]
    """For a client that is another process."""

    def order(self, **fault: object) -> None:
        """Has requests for a part of a path fail."""
        (self.folder / "faults.json").write_text(json.dumps([{"times": 99, **fault}]))

    def heal(self) -> None:
        (self.folder / "faults.json").unlink()

    def commits(self, repository: str = "me/pairs") -> int:
        """How many commits follow the first, empty one."""
        return sum(path.is_dir() for path in (self.folder / repository).iterdir()) - 1

    def newest(self, repository: str = "me/pairs") -> Path:
        own = self.folder / repository
        return own / (own / "main").read_text()

    def requests(self, part: str) -> int:
        """How many requests had this part since the last call."""
        log = self.folder / "log"
        lines = log.read_text().splitlines()
        log.write_text("")
        return sum(part in line for line in lines)


@pytest.fixture
def hub(tmp_path: Path, hub_server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> Hub:
    endpoint, folder = hub_server
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "hf_of_me",
        "HF_HUB_DISABLE_XET": "1",  # whose storage is no server of ours
    }
    # the library has read its variables already when a test begins
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    files = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_me")
    return Hub(folder, endpoint, {**os.environ, **settings})


def _front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n", 2)[1])


def test_a_push_is_one_commit_that_is_the_set_and_another_makes_none(hub: Hub, tmp_path: Path) -> None:
    samples = _samples(5)
    _write(samples, tmp_path / "set", rows_per_shard=2, **OURS)
    done = push(str(tmp_path / "set"), TARGET)
    assert (done.url, done.licence) == (f"{hub.endpoint}/datasets/me/pairs", "apache-2.0")
    there = {path.name: path.stat().st_size for path in hub.newest().iterdir()}
    del there[".gitattributes"]
    assert done.uploaded == there
    assert there.keys() == {
        *(f"0000{shard}.tar" for shard in range(3)),
        *("README.md", "contact_sheet.png", "croissant.json", "manifest.json", "records.json"),
    }
    assert read_distilled(str(hub.newest())) == samples
    assert _front((hub.newest() / "README.md").read_text())["license"] == "apache-2.0"

    again = push(str(tmp_path / "set"), TARGET)
    assert (again.uploaded, again.removed) == ({}, ())
    assert push(str(hub.newest()), TARGET).uploaded == {}  # of a copy from the hub
    assert hub.commits() == 1


def test_a_push_from_an_object_store_is_the_same(hub: Hub, tmp_path: Path, s3_server: str) -> None:
    import s3fs

    _write(_samples(3), tmp_path / "set", **OURS)
    s3fs.S3FileSystem().mkdir("shared-bucket")
    s3fs.S3FileSystem().put(str(tmp_path / "set"), "s3://shared-bucket/set", recursive=True)
    push("s3://shared-bucket/set", TARGET)
    assert push(str(tmp_path / "set"), TARGET).uploaded == {}


def test_what_a_student_trains_on_is_pushed_with_the_images_that_show_it(hub: Hub, tmp_path: Path) -> None:
    pairs = learnt(2)
    _write(_samples(2, captions=1), tmp_path / "set", learnt=pairs, **OURS)
    push(str(tmp_path / "set"), TARGET)
    found = read_learnt(str(hub.newest()))
    assert found is not None
    assert same(found, pairs)
    assert len(_check_records(hub, "me/pairs", _samples(2, captions=1), tmp_path)["distribution"]) == 6


def test_a_smaller_set_takes_the_place_of_a_larger_one(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = [replace(sample, label=number % 2) for number, sample in enumerate(_samples(4))]
    _write(labelled, tmp_path / "set", rows_per_shard=2, class_names={0: "cat", 1: "dog"}, **OURS)
    assert tools.push([str(tmp_path / "set"), TARGET]) == 0
    assert "uploaded 00001.tar\n" in (printed := capsys.readouterr().out)
    assert "uploaded 4 files of images/\n" in printed
    assert (hub.newest() / "images" / "0001_dog" / "edge-000001.png").read_bytes() == labelled[1].image
    _write(_samples(2), tmp_path / "set", **OURS)
    removed = push(str(tmp_path / "set"), TARGET, message="Fewer").removed
    assert {name for name in removed if not name.startswith("images/")} == {"00001.tar"}
    assert not list((hub.newest() / "images").rglob("*.png"))
    assert read_distilled(str(hub.newest())) == _samples(2)


def test_a_push_goes_on_where_it_was_broken_off(hub: Hub, tmp_path: Path) -> None:
    _write(_samples(4), tmp_path / "set", rows_per_shard=2, **OURS)
    hub.order(path="/commit/", status=503)
    with pytest.raises(StorageError, match="while uploading to hf://datasets/me/pairs"):
        push(str(tmp_path / "set"), TARGET)
    assert hub.requests("PUT /lfs/") == 3  # two shards and the contact sheet
    assert hub.commits() == 0
    hub.heal()
    push(str(tmp_path / "set"), TARGET)
    assert hub.requests("PUT /lfs/") == 0
    assert read_distilled(str(hub.newest())) == _samples(4)


@pytest.mark.parametrize(
    ("target", "status", "says"),
    [
        ("hf://datasets/me/pairs", 401, "the hub does not know you; log in with hf auth login"),
        ("hf://datasets/me/pairs", 403, "your token may not write there"),
        ("hf://datasets/me/pairs", 402, "the hub refuses it: .*402"),
        ("hf://datasets/others/pairs", None, "hf://datasets/others/pairs: your token may not write there"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub: Hub, tmp_path: Path, target: str, status: int | None, says: str
) -> None:
    _write(_samples(1), tmp_path / "set", **OURS)
    if status:
        hub.order(path="/api/", status=status)
    with pytest.raises(UserError, match=says):
        push(str(tmp_path / "set"), target)


def test_a_large_file_that_the_hub_refuses_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    _write(_samples(1), tmp_path / "set", **OURS)
    hub.order(path="/lfs/", status=403)
    with pytest.raises(UserError, match="your token may not write there"):
        push(str(tmp_path / "set"), TARGET)
    assert hub.commits() == 0


def test_nobody_is_sent_to_log_in(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    _write(_samples(1), tmp_path / "set", **OURS)
    with pytest.raises(UserError, match="log in with hf auth login, or set HF_TOKEN"):
        push(str(tmp_path / "set"), TARGET)


def test_a_hub_that_cannot_be_reached_is_worth_another_try(
    tmp_path: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("HF_TOKEN", "hf_of_me")
    _write(_samples(1), tmp_path / "set", **OURS)
    with pytest.raises(StorageError, match="uploading to hf://datasets/me/pairs"):
        push(str(tmp_path / "set"), TARGET)


@pytest.mark.parametrize(
    "target",
    [
        "me/pairs",
        "hf://me/pairs",
        "hf://datasets/pairs",
        "hf://datasets/me/pairs@main",
        "hf://datasets/a/b/c",
        "s3://b/c",
    ],
)
def test_a_target_that_is_no_dataset_of_the_hub_is_refused_before_the_set_is_read(target: str) -> None:
    with pytest.raises(UserError, match="name a dataset on the hub, hf://datasets/OWNER/NAME"):
        push("no/such/set", target)
    with pytest.raises(UserError, match="no name that the hub allows"):
        push("no/such/set", "hf://datasets/me/a--b")


def test_a_damaged_set_and_one_without_its_card_are_not_pushed(tmp_path: Path) -> None:
    _write(_samples(2), tmp_path / "set", **OURS)
    card = (tmp_path / "set" / "README.md").read_bytes()
    (tmp_path / "set" / "README.md").unlink()
    with pytest.raises(UserError, match=r"has no README\.md; copy the distilled set again"):
        push(str(tmp_path / "set"), TARGET)
    (tmp_path / "set" / "README.md").write_bytes(card)
    (tmp_path / "set" / "00000.tar").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"00000\.tar is damaged"):
        push(str(tmp_path / "set"), TARGET)


def test_a_repository_of_something_else_and_a_public_one_are_left_alone(hub: Hub, tmp_path: Path) -> None:
    _write(_samples(1), tmp_path / "set", **OURS)
    api = huggingface_hub.HfApi()
    api.create_repo("me/other", repo_type="dataset")
    api.upload_file(path_or_fileobj=b"1", path_in_repo="data.csv", repo_id="me/other", repo_type="dataset")
    with pytest.raises(UserError, match=r"holds no distilled set but other files, e\.g\. data\.csv"):
        push(str(tmp_path / "set"), "hf://datasets/me/other")
    for name in ("manifest.json", "00000.tar"):  # names of a set's, and of many another project's
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id="me/other", repo_type="dataset")
        with pytest.raises(UserError, match=r"holds no distilled set but other files"):
            push(str(tmp_path / "set"), "hf://datasets/me/other")
    push(str(tmp_path / "set"), TARGET)
    with pytest.raises(UserError, match="is public already"):
        push(str(tmp_path / "set"), TARGET, private=True)
    push(str(tmp_path / "set"), "hf://datasets/me/secret", private=True)
    assert (hub.folder / "me" / "secret" / "private").exists()


def test_a_licence_is_derived_where_all_parts_agree_and_asked_for_otherwise(hub: Hub, tmp_path: Path) -> None:
    drawn = {**MODELS, "generator": {"name": "stable-diffusion-v1-5/stable-diffusion-v1-5", "version": None}}
    _write(_samples(1), tmp_path / "set", **OURS | {"models": drawn})
    with pytest.raises(UserError, match=r"v1-5 \(generator\): CreativeML OpenRAIL-M.*--license, such as"):
        push(str(tmp_path / "set"), TARGET)
    assert "license" not in _front((tmp_path / "set" / "README.md").read_text())
    with pytest.raises(UserError, match="no identifier of a licence"):
        push(str(tmp_path / "set"), TARGET, license="my own")
    with pytest.raises(UserError, match=r'the hub refuses it: .*"license" must be one of'):
        push(str(tmp_path / "set"), TARGET, license="mine")
    assert push(str(tmp_path / "set"), TARGET, license="CC-BY-4.0").licence == "cc-by-4.0"
    card = (hub.newest() / "README.md").read_text()
    assert _front(card)["license"] == "cc-by-4.0"
    assert "CreativeML OpenRAIL-M" in card
    assert "contact_sheet.png" in card
    # a licence that somebody wrote into the card counts
    (tmp_path / "set" / "README.md").write_text(card.replace("cc-by-4.0", "other"))
    assert push(str(tmp_path / "set"), TARGET).licence == "other"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "The captions are real ones."),
        ({"captions_per_image": {"max": 3}}, "The first captions are real ones; a model wrote the others"),
        ({"settings": {"describe": {"source": "vlm"}}}, "A model wrote the descriptions"),
        ({"settings": {"describe": {"source": "template"}}}, "The descriptions say the class"),
        ({"learnt": {}}, "The captions are real ones."),
        ({"learnt": {"name": "x"}}, "The captions are real ones or were written by a model"),
    ],
)
def test_the_limits_say_who_wrote_the_captions(changes: dict[str, Any], says: str) -> None:
    manifest = {"captions_per_image": {"max": 1}, **OURS, **changes}
    assert sum(text.startswith(says) for text in limits(manifest)) == 1


@pytest.mark.parametrize(
    ("changes", "licence"),
    [
        ({}, "apache-2.0"),
        ({"models": {}}, None),
        ({"models": {"clip": {"name": "ViT-B-32/laion2b_s34b_b79k"}}}, None),
        ({"settings": {"data": {"uri": "photos/"}}}, None),
        ({"settings": {"data": {"uri": "shapes:10::photos/"}}}, None),
        ({"settings": {"data": {"uri": "shapes:10::shapes:20"}}}, "apache-2.0"),
        ({"settings": {}}, None),
        ({"inputs": {"start": {"uri": "other/distilled"}}}, None),
    ],
)
def test_a_licence_follows_only_from_parts_that_are_all_known(
    changes: dict[str, Any], licence: str | None
) -> None:
    assert set_licence({**OURS, **changes}) == licence


def test_data_of_a_repository_that_is_not_there_is_a_mistake_of_the_user(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"me/none/0\.tar: no such repository or revision"):
        pinned("hf://datasets/me/none/0.tar", {})


READ = """
import sys
from datasets import load_dataset
from mmdd_ray import load_set
from mmdd_ray.config import Data
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shards import list_shards
data = Data(uri="hf://datasets/me/pairs")
rows = [row for shard in list_shards(data) for row in iter_shard(shard, data)]
records = load_dataset("me/pairs", split="train")["json"]
print([sample.key for sample in load_set("hf://datasets/me/pairs").samples])
print([record["key"] for record in records])
print([list(row.captions) for row in rows])
"""


def test_what_the_command_pushes_is_read_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    samples = _samples(3)
    _write(samples, tmp_path / "set", rows_per_shard=2, **OURS)

    def run(*command: str) -> str:
        python = [sys.executable, "-c", *command]
        return subprocess.run(python, env=hub.environment, capture_output=True, text=True, check=True).stdout

    mmdd = ["from mmdd_ray.cli.commands import script; script()", "push", str(tmp_path / "set"), TARGET]
    pushed = run(*mmdd).splitlines()
    assert {"uploaded 00000.tar", "uploaded README.md"} <= set(pushed)
    assert run(*mmdd[:2], "--help").startswith("usage: mmdd push")
    assert pushed[-1] == f"{hub.endpoint}/datasets/me/pairs, licence apache-2.0"
    assert run(*mmdd).startswith("nothing to upload: the hub has this set already\n")
    keys = [sample.key for sample in samples]
    found = [ast.literal_eval(line) for line in run(READ).splitlines()]
    assert found == [keys, keys, [list(sample.captions) for sample in samples]]


RECORDS = """
import json, sys
import mlcroissant
dataset = mlcroissant.Dataset(sys.argv[1])
issues = dataset.metadata.ctx.issues
records = [
    {name: value.convert("RGB").tobytes().hex() if hasattr(value, "convert")
     else [text.decode() for text in value] if isinstance(value, list)
     else value.decode() if isinstance(value, bytes) else value for name, value in record.items()}
    for record in dataset.records("records")
]
print(json.dumps({"issues": [*issues.errors, *issues.warnings], "records": records,
                  "version": dataset.metadata.ctx.conforms_to.value, "biases": dataset.metadata.data_biases}))
"""


def _check_records(hub: Hub, repository: str, samples: list[Sample], tmp_path: Path) -> dict[str, Any]:
    """Checks that mlcroissant reads the samples from the hub; gives the description by which it does."""
    url = f"{hub.endpoint}/datasets/{repository}/resolve/main/croissant.json"
    environment = {**hub.environment, "CROISSANT_CACHE": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, "-c", RECORDS, url], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(run.stdout.splitlines()[-1])
    assert (found["issues"], found["version"]) == ([], CONFORMS_TO[0])
    by_key = {record["records/key"]: record for record in found["records"]}
    assert by_key.keys() == {sample.key for sample in samples}
    for sample in samples:
        record = by_key[sample.key]
        assert record["records/captions"] == list(sample.captions)
        assert record["records/image"] == _pixels(sample.image)
        assert (record["records/seed"], record["records/source_key"]) == (sample.seed, sample.source_key)
        assert record.get("records/label") == sample.label
    return json.loads((hub.newest(repository) / "croissant.json").read_text())


def _pixels(png: bytes) -> str:
    return Image.open(io.BytesIO(png)).convert("RGB").tobytes().hex()


def test_croissant_is_valid_and_its_records_are_the_samples(hub: Hub, tmp_path: Path) -> None:
    samples = _samples(5)
    samples[3] = replace(samples[3], captions=("one", "two", "three"))
    samples[4] = replace(samples[4], key="000123", source_key="00077")  # must not become numbers
    manifest = _write(samples, tmp_path / "set", rows_per_shard=2, **OURS)
    push(str(tmp_path / "set"), TARGET)
    found = _check_records(hub, "me/pairs", samples, tmp_path)
    assert found["conformsTo"] == CONFORMS_TO
    assert found["license"] == "https://spdx.org/licenses/Apache-2.0.html"
    assert found["creator"] == {"@type": "sc:Person", "name": "me", "url": f"{hub.endpoint}/me"}
    assert found["datePublished"] == "2026-01-02"  # the day on which the hub made the repository
    described = {file["@id"]: file.get("sha256") for file in found["distribution"]}
    assert {name: described[name] for name in ("00000.tar", "00001.tar", "00002.tar")} == {
        shard["name"]: shard["sha256"] for shard in manifest["shards"]
    }
    for field in (
        "dataCollection",
        "dataLimitations",
        "dataBiases",
        "dataUseCases",
        "personalSensitiveInformation",
    ):
        assert found[f"rai:{field}"]
    assert found["rai:machineAnnotationTools"] == ["tiny-captioner"]
    agents = [agent["prov:label"] for agent in found["prov:wasGeneratedBy"]["prov:wasAssociatedWith"]]
    assert "tiny-clip (clip); Apache-2.0, as mmdd-ray" in agents
    assert found["prov:wasDerivedFrom"] == [{"@type": "prov:Entity", "prov:label": "shapes:1000"}]


def test_croissant_of_a_labelled_set_has_its_classes(hub: Hub, tmp_path: Path) -> None:
    labelled = [replace(sample, label=number % 2) for number, sample in enumerate(_samples(4))]
    _write(labelled, tmp_path / "set", class_names={0: "cat", 1: "dog"}, **OURS)
    push(str(tmp_path / "set"), "hf://datasets/lab/pets", license="other")
    found = _check_records(hub, "lab/pets", labelled, tmp_path)
    assert found["recordSet"][1]["data"] == [
        {"classes/label": 0, "classes/name": "cat"},
        {"classes/label": 1, "classes/name": "dog"},
    ]
    assert found["creator"]["@type"] == "sc:Organization"
    assert found["license"]["name"] == "other"


def _pairs(uri: str) -> list[tuple[bytes, list[str], int | None]]:
    """Images with their captions and labels, as mmdd-ray reads a source."""
    rows = read(Data(uri=uri))
    assert [row.reject for row in rows] == [None] * len(rows)
    return sorted((row.image, list(row.captions), row.label) for row in rows)


def _as_read(samples: Sequence[Sample]) -> list[tuple[bytes, list[str], int | None]]:
    return sorted((sample.image, list(sample.captions), sample.label) for sample in samples)


@pytest.mark.parametrize("layout", ["imagefolder", "parquet"])
@pytest.mark.parametrize("captions", [1, 2])
def test_mmdd_ray_reads_its_exports_as_the_same_pairs(layout: Layout, captions: int, tmp_path: Path) -> None:
    samples = _samples(5, captions=captions)
    samples[3] = replace(samples[3], captions=('one, "quoted" caption — 猫',), key="../odd key")
    _write(samples, tmp_path / "set", rows_per_shard=2)
    done = export(str(tmp_path / "set"), str(tmp_path / "out"), layout)
    assert (done.images, done.pairs) == (5, 4 * captions + 1)
    assert _pairs(str(tmp_path / "out")) == _as_read(samples) == _pairs(str(tmp_path / "set"))


@pytest.mark.parametrize("layout", ["imagefolder", "parquet"])
def test_an_export_keeps_labels(layout: Layout, tmp_path: Path) -> None:
    labelled = [replace(sample, label=number % 2) for number, sample in enumerate(_samples(4))]
    _write(labelled, tmp_path / "set", class_names={0: "cat", 1: "dog"})
    export(str(tmp_path / "set"), str(tmp_path / "out"), layout)
    assert _pairs(str(tmp_path / "out")) == _as_read(labelled)


def test_an_export_writes_into_no_folder_that_has_files_and_knows_two_layouts(tmp_path: Path) -> None:
    _write(_samples(2), tmp_path / "set")
    with pytest.raises(UserError, match=r"is not empty, it has 00000\.tar; name a new folder"):
        export(str(tmp_path / "set"), str(tmp_path / "set"), "parquet")
    with pytest.raises(UserError, match="there is no layout csv; choose one of imagefolder, parquet"):
        export(str(tmp_path / "set"), str(tmp_path / "out"), "csv")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_export_goes_to_an_object_store_by_the_command(tmp_path: Path, s3_server: str) -> None:
    import s3fs

    _write(_samples(2), tmp_path / "set")
    s3fs.S3FileSystem().mkdir("export-bucket")
    assert tools.export([str(tmp_path / "set"), "s3://export-bucket/out"]) == 0
    assert _pairs("s3://export-bucket/out") == _as_read(_samples(2))


EXPORTS = """
import hashlib, io, os, random, sys
from datasets import Image, load_dataset
folder, parquet = sys.argv[1:]

def digest(image):
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()

random.seed(0)
# as the text-to-image scripts of diffusers name the files, and choose a caption
everything = {"train": os.path.join(folder, "**")}
for found in (
    load_dataset("imagefolder", data_dir=folder, split="train"),
    load_dataset("imagefolder", data_files=everything, split="train"),
):
    assert found.column_names[:2] == ["image", "text"], found.column_names
    for row in found:
        text = row["text"]
        assert random.choice(text) if isinstance(text, list) else text
        print(row["key"], digest(row["image"]), text, sep="|")
found = load_dataset("parquet", data_dir=parquet, split="train").cast_column("png", Image())
for row in found.filter(lambda row: row["status"] == "success"):
    print(row["key"], digest(row["png"]), row["caption"], row["captions"], sep="|")
"""


@pytest.mark.parametrize("captions", [1, 2])
def test_hugging_face_and_diffusers_read_the_exports(captions: int, tmp_path: Path) -> None:
    samples = _samples(3, captions=captions)
    _write(samples, tmp_path / "set", rows_per_shard=2)
    for layout in get_args(Layout):
        export(str(tmp_path / "set"), str(tmp_path / layout), layout)
    run = subprocess.run(
        [sys.executable, "-c", EXPORTS, str(tmp_path / "imagefolder"), str(tmp_path / "parquet")],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    texts = [sample.captions[0] if captions == 1 else list(sample.captions) for sample in samples]
    heads = [f"{s.key}|{hashlib.sha256(bytes.fromhex(_pixels(s.image))).hexdigest()}" for s in samples]
    shown = [f"{head}|{text}" for head, text in zip(heads, texts, strict=True)]
    rows = [f"{head}|{s.captions[0]}|{list(s.captions)}" for head, s in zip(heads, samples, strict=True)]
    assert run.stdout.splitlines() == [*shown, *shown, *rows], run.stderr[-2000:]
