"""Sets of any origin beside each other: what a `--set` names, how it is read, and paired differences of students."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from scipy.stats import ttest_ind, ttest_rel
from source_files import jpeg, write_parquet

from mmdd_ray.cli import parse
from mmdd_ray.config import Data, Evaluation, Students
from mmdd_ray.data import shapes
from mmdd_ray.data.inventory import Source
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shards import list_shards
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.distilled.published import read_published
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.engine.draws import Draw
from mmdd_ray.engine.run_dir import RunDir, StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation import held_out
from mmdd_ray.evaluation.report.differences import differences
from mmdd_ray.evaluation.report.standing import standing
from mmdd_ray.evaluation.report.text import about_given, headline
from mmdd_ray.evaluation.spread import spread
from mmdd_ray.evaluation.tasks.students import frozen_text_features
from mmdd_ray.features.rejects import RejectList
from mmdd_ray.methods import commits
from mmdd_ray.methods import named_sets as named
from mmdd_ray.methods.evaluate import METHOD
from mmdd_ray.methods.evaluate.look import FITTING, look_at_sets, text_width
from mmdd_ray.methods.evaluate.presets import PRESETS
from mmdd_ray.methods.evaluate.reading import of_text_model, read_sets
from mmdd_ray.methods.evaluate.settings import Evaluate
from mmdd_ray.methods.evaluate.stages import STEPS
from mmdd_ray.methods.evaluate_labelled.presets import local as labelled_local
from mmdd_ray.methods.execute import run_stage
from mmdd_ray.methods.method import Context
from mmdd_ray.methods.named_sets import kind_of, named_sets
from mmdd_ray.models.students import load_text_encoder
from mmdd_ray.planning.costs import evaluation_cost
from mmdd_ray.protocols.lors_frozen_text import LORS_FROZEN_TEXT
from mmdd_ray.storage.store import Store

ROOT = Path(__file__).parents[1]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's preprocessing
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def judged(*protocols: Any, students: tuple[str, ...] = ()) -> Evaluation:
    return Evaluation(val="shapes:6?seed=2", test="shapes:6?seed=3", protocols=protocols, students=students)


def settings_of(*uris: object, **changes: Any) -> Evaluate:
    settings = Evaluate(
        set=tuple(map(str, uris)),
        data=Data(uri="shapes:40?seed=1"),
        evaluation=judged("lors-frozen-text"),
    )
    return replace(settings, **changes)


def ours(folder: Path, method: str = "EDGE", pairs: int = 6) -> Path:
    """A distilled set."""
    samples = [
        Sample(key=f"{i:06d}", image=one["image"], captions=("a circle",), seed=i, source_key=f"real-{i}")
        for i, one in enumerate(shapes.pairs(0, pairs, seed=5))
    ]
    write_distilled(samples, Store(str(folder)), method=method, settings={}, seed=0, inputs={})
    return folder


def photos(folder: Path, pairs: int = 5, damaged: int = 0, seed: int = 6) -> Path:
    """Images with a caption beside each, and some that are none."""
    folder.mkdir(parents=True)
    for i, one in enumerate(shapes.pairs(0, pairs, seed=seed)):
        folder.joinpath(f"{i}.png").write_bytes(b"no image" if i < damaged else one["image"])
        folder.joinpath(f"{i}.txt").write_text(f"{one['captions'][0]} {i}")
    return folder


def tensors(n: int = 4, px: int = 32, width: int = 128) -> dict[str, Any]:
    """The content of a file as LoRS saves it."""
    drawn = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn(n, 3, px, px, generator=drawn),
        "text": torch.randn(n, width, generator=drawn),
        "similarity_params": [torch.ones(n), torch.zeros(n, 2)],
        "similarity_mat": torch.eye(n),
        "syn_lr_img": torch.tensor(0.25),
        "syn_lr_txt": torch.tensor(0.5),
    }


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def vectors(file: Path, **changes: Any) -> Path:
    file.write_bytes(saved(tensors(**changes)))
    return file


# ---- files of LoRS and RepBlend


def test_pixels_of_a_published_file_are_undone_by_the_statistics_of_clip() -> None:
    level_NCHW = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.float32)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    content = tensors() | {"image": torch.tensor((level_NCHW / 255 - mean) / std)}
    pairs = read_published(saved(content))
    assert np.array_equal(pairs.images(), level_NCHW.transpose(0, 2, 3, 1))
    assert np.array_equal(pairs.vectors, content["text"].numpy())
    assert np.array_equal(pairs.similarity, np.eye(4))
    assert (pairs.pooling, pairs.encoder, pairs.has_words, pairs.n_pairs) == ("cls", "", False, 4)
    assert pairs.rates == (0.25, 0.5)
    read_again = type(pairs).from_bytes(pairs.to_bytes())
    assert (read_again.fingerprint(), read_again.rates) == (pairs.fingerprint(), pairs.rates)
    # RepBlend's have no similarities; parameters and half precision are tensors, too
    plain = {
        "image": torch.nn.Parameter(content["image"]),
        "text": content["text"].half(),
        "similarity_mat": None,
    }
    found = read_published(saved(plain))
    assert found.similarity is None
    assert found.rates is None
    assert found.vectors is not None
    assert found.vectors.dtype == np.float32


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.file,))


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    file = tmp_path / "planted"
    content = saved(tensors() | {"more": Planted(file)})
    with pytest.raises(UserError, match="damaged or holds pickled code, which is never run"):
        read_published(content)
    assert not file.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], r"^holds a list; expected a dict of tensors as LoRS saves it"),
        ({"images": torch.zeros(2)}, r'^has no "image" \(it has images\); expected'),
        ({"image": torch.zeros(2)}, r'^has no "text"'),
        (tensors() | {"image": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, r'"image" of torch\.uint8'),
        (tensors() | {"text": [1.0]}, r'"text" of list'),
        (tensors() | {"image": torch.randn(4, 8, 8, 3)}, r'"image" of shape \(4, 8, 8, 3\)'),
        (tensors() | {"image": torch.randn(4, 3, 8, 9)}, r'"image" of shape \(4, 3, 8, 9\)'),
        (tensors() | {"image": torch.tensor(1.0)}, r'"image" of shape \(\)'),
        (tensors() | {"image": torch.rand(4, 3, 8, 8)}, r"without a value below 0, so that it is not normal"),
        (tensors() | {"text": torch.randn(3, 128)}, r'4 images, but a "text" of shape \(3, 128\)'),
        (tensors() | {"text": torch.randn(4, 5, 128)}, r'a "text" of shape \(4, 5, 128\)'),
        (tensors() | {"text": torch.full((4, 2), torch.nan)}, r'a "text" with 8 values that are not finite'),
        (tensors() | {"similarity_mat": torch.eye(3)}, r"of shape \(3, 3\); it must be \(4, 4\)"),
        (tensors() | {"syn_lr_txt": None}, "syn_lr_img and syn_lr_txt that are not two positive numbers"),
        (tensors() | {"syn_lr_img": torch.tensor(-0.1)}, "that are not two positive numbers"),
        (tensors() | {"image": -4 + 0.1 * torch.randn(4, 3, 8, 8)}, "normalised otherwise"),
        (tensors() | {"syn_lr_img": torch.ones(2)}, "that are not two positive numbers"),
    ],
)
def test_what_is_no_such_file_is_one_sentence(content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_published(saved(content))


@pytest.mark.parametrize("content", [b"", saved(tensors())[:5000]])
def test_damaged_files_are_one_sentence(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^cannot be read as tensors alone \("):
        read_published(content)


@pytest.mark.parametrize("content", [b"hello\n", b"http://x\n", b"epoch loss\n1 2\n", b"no tensors"])
def test_a_text_file_is_refused_without_the_opcode_that_it_was_taken_for(content: bytes) -> None:
    with pytest.raises(
        UserError, match=r"^cannot be read as tensors alone; it is of another kind, damaged or"
    ):
        read_published(content)


def test_images_without_captions_are_refused_with_the_files_that_they_need(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    for text in folder.glob("*.txt"):
        text.unlink()
    with pytest.raises(
        UserError, match=r"has a caption; put NAME\.txt .* or a metadata\.jsonl with file_name"
    ):
        look_at_sets(settings_of(folder))


# ---- what a set is, and how it is called


def test_a_set_is_told_by_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "folder.pt"
    assert kind_of(str(ours(tmp_path / "ours"))) == "distilled"
    assert kind_of(f"file://{tmp_path}/ours") == "distilled"
    assert kind_of(str(photos(folder))) == "pairs"
    assert kind_of(str(vectors(tmp_path / "lors.pt"))) == "vectors"
    assert kind_of("shapes:9?seed=1") == kind_of("a.pt::b.pt") == kind_of("x/{0..9}.tar") == "pairs"


def test_sets_on_object_storage_are_told_and_read_like_local_ones(s3_server: str, tmp_path: Path) -> None:
    fs = fsspec.filesystem("s3")
    fs.mkdir("given-sets")
    for name, path in {
        "ours": ours(tmp_path / "ours"),
        "photos": photos(tmp_path / "photos"),
        "lors.pt": vectors(tmp_path / "lors.pt"),
    }.items():
        fs.put(str(path), f"given-sets/{name}", recursive=path.is_dir())
    uris = [f"s3://given-sets/{name}" for name in ("ours", "photos/", "lors.pt")]
    found = named_sets(uris)
    assert [(one.name, one.kind) for one in found] == [
        ("edge", "distilled"),
        ("photos", "pairs"),
        ("lors", "vectors"),
    ]
    look_at_sets(settings_of(*uris))
    with pytest.raises(UserError, match=r"^set=s3://given-sets/none\.pt: no such file"):
        named_sets(["s3://given-sets/none.pt"])


def test_names_are_distinct_and_never_those_of_baselines(tmp_path: Path) -> None:
    uris = [
        ours(tmp_path / "a"),
        ours(tmp_path / "b"),
        ours(tmp_path / "c", "Random"),
        photos(tmp_path / "random"),
        photos(tmp_path / "full"),
        vectors(tmp_path / "edge.pt"),
        photos(tmp_path / "My photos"),
        "shapes:9?seed=1",
        f"{photos(tmp_path / 'x' / 'one')}::{tmp_path / 'random'}",
        f"{tmp_path}/shards/{{00000..00003}}.tar",
    ]
    found = named_sets([str(uri) for uri in uris])
    names = [one.name for one in found]
    assert names[:6] == ["edge", "edge-2", "distilled", "random-set", "full-set", "edge-3"]
    assert names[6].startswith("my_photos-")
    assert names[7:] == ["shapes", "one", "shards"]
    assert [one.label for one in found][:6] == ["EDGE", "EDGE-2", "Random", "random", "full", "edge-3"]


def test_what_is_unclear_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ours(run / "distilled")
    lost = ours(tmp_path / "lost")
    (lost / "manifest.json").unlink()
    foreign = photos(tmp_path / "foreign")
    (foreign / "manifest.json").write_text("{}")
    judged_before = tmp_path / "judged"
    judged_before.mkdir()
    for name in ("settings.json", "report.json"):
        (judged_before / name).write_text("{}")
    for uri, message in {
        str(run): rf"^set={run} is a run directory; name its set, {run}/distilled$",
        str(
            judged_before
        ): rf"^set={judged_before} is the run directory of an evaluation, which has no set; name the",
        str(lost): "has the contact_sheet.png of a distilled set, but no manifest.json; copy",
        str(foreign): "manifest.json that is no distilled set's",
        f"{run}/distilled/manifest.json": "is a file of a distilled set; name the folder",
        f"{tmp_path}/no.pt": r"^set=.*/no\.pt: no such file; name a \.pt file, a folder or",
        " ": "^set names nothing",
    }.items():
        with pytest.raises(UserError, match=message):
            named_sets([uri])
    with pytest.raises(UserError, match=r"^set names .* twice"):
        named_sets([f"{run}/distilled", f"{run}/../run/distilled/"])


def test_the_command_line_takes_one_set_or_several() -> None:
    assert parse("evaluate", PRESETS, ["--set", "a"])[1].set == ("a",)
    assert parse("evaluate", PRESETS, ["local", "--set", "a", "b", "c", "--run.seed", "3"])[1].set == tuple(
        "abc"
    )


def test_sets_on_the_hub_are_read_at_the_commit_that_the_run_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "hf://datasets/o/n"
    monkeypatch.setattr(commits, "pinned", lambda one, _: f"{one}@abc" if one.startswith("hf://") else one)
    found = commits.at_commits(settings_of(uri, "local"), Store(str(tmp_path)))
    assert found.set == (f"{uri}@abc", "local")
    monkeypatch.setattr(named, "kind_of", lambda uri: "pairs")  # without a network
    assert (
        [one.name for one in named_sets([f"{uri}@abc"])] == [one.name for one in named_sets([uri])] == ["n"]
    )


def test_a_teacher_on_the_hub_is_held_at_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "pinned", lambda one, _: one.replace("/n/", "/n@abc/"))
    settings = labelled_local()
    given = replace(settings, classifiers=replace(settings.classifiers, teacher="hf://o/n/model.safetensors"))
    found = commits.at_commits(given, Store(str(tmp_path)))
    assert found.classifiers.teacher == "hf://o/n@abc/model.safetensors"
    assert commits.at_commits(settings, Store(str(tmp_path))) is settings


# ---- before a run


def test_what_was_found_is_printed_for_each_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    look_at_sets(
        settings_of(ours(tmp_path / "a"), photos(tmp_path / "photos"), vectors(tmp_path / "lors.pt", px=40))
    )
    assert capsys.readouterr().out.splitlines() == [
        "set             edge: distilled set of EDGE, 6 pairs on 6 images of 32 px",
        "set             photos: source of pairs, read at 32 px: 5 images with captions in .txt of the same name",
        "set             lors: images and sentence vectors as LoRS saves them, 4 pairs on 4 images of 40 px; "
        "resized to 32 px",
    ]


def test_sets_that_cannot_be_are_refused_before_any_work(tmp_path: Path) -> None:
    splits = tmp_path / "splits"
    photos(splits / "train")
    photos(splits / "test")
    wide = vectors(tmp_path / "wide.pt", width=768)
    odd = vectors(tmp_path / "odd.pt", width=77)
    fits = vectors(tmp_path / "fits.pt")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(saved(tensors())[:4000])
    both = Students(trained="both-encoders")
    another = judged("lors-frozen-text", students=("tiny-nf+/models/bert",))
    for settings, message in (
        (settings_of(tmp_path / "nowhere"), r"^set=.*nowhere: no such file"),
        (settings_of(splits), r"^set=.*splits.*(set_split=train)"),
        (
            settings_of("shapes:9?seed=3"),
            r"^set=shapes:9\?seed=3: 1 of its 1 files .* of evaluation\.test, too",
        ),
        (settings_of(damaged), r"^set=.*damaged\.pt cannot be read as tensors"),
        (
            settings_of(wide),
            r"^set=.*wide\.pt has sentence vectors of 768 numbers, but students\.text_model=tiny-bert gives 128; .*"
            r"width 768, such as google-bert/bert-base-uncased$",
        ),
        (settings_of(odd), r"the encoder that they are of: one of width 77$"),
        (
            settings_of(fits, students=both, evaluation=judged("equal-budget")),
            "equal-budget train the text encoder",
        ),
        (
            settings_of(fits, evaluation=judged("covmatch-both-encoders")),
            r"protocols=covmatch-both-encoders train",
        ),
        (
            settings_of(fits, evaluation=judged("lors-frozen-text", "equal-budget")),
            r"^set=.*fits\.pt has sentence vectors that are the state of the \[CLS\] token, as LoRS saves them, but "
            r"the students of evaluation\.protocols=equal-budget read captions as the mean over all tokens; set",
        ),
        (
            settings_of(fits, evaluation=another),
            r"text encoder than students\.text_model, /models/bert; leave",
        ),
    ):
        with pytest.raises(UserError, match=message):
            look_at_sets(settings)
    look_at_sets(settings_of(splits, set_split="train"))


def test_a_set_may_have_its_captions_in_another_column_than_the_data(tmp_path: Path) -> None:
    words = write_parquet(tmp_path / "words.parquet", {"image": [jpeg()], "words": ["a circle"]})
    with pytest.raises(UserError) as refused:
        look_at_sets(settings_of(words))
    said = str(refused.value)
    assert said.startswith(
        f"none of data.caption_columns (captions, caption, text) is in {words}: the file has the"
    )
    *_, option, first, second, third, name = said.split()
    assert (option, name) == ("--data.caption_columns", "NAME")
    columns = (first, second, third, "words")
    look_at_sets(settings_of(words, data=Data(uri="shapes:40?seed=1", caption_columns=columns)))


def test_advice_on_text_encoders_names_their_width() -> None:
    assert FITTING[text_width(Students()) or 0] == "tiny-bert"


def test_the_plan_counts_the_students_of_every_set() -> None:
    settings = settings_of("a", "b", "c")
    one, three = (
        evaluation_cost(settings.students, judged("equal-budget"), 6, given=sets).actors for sets in (1, 3)
    )
    assert three - one == 2 * (3 + 2)  # seeds and learning rates


def test_the_plan_knows_how_many_pairs_the_first_set_has(tmp_path: Path) -> None:
    rows = photos(tmp_path / "photos", pairs=7)
    for uri, pairs in ((ours(tmp_path / "ours"), 6), (vectors(tmp_path / "four.pt"), 4), (rows, 7)):
        settings = settings_of(uri, "not looked at")
        source = METHOD.look(settings)
        assert (source.rows, METHOD.size(settings, source)) == (40, ("set", pairs))
    manifest = tmp_path / "ours/manifest.json"
    manifest.write_text(manifest.read_text().replace('"pairs"', '"couples"'))
    assert METHOD.look(settings_of(tmp_path / "ours")).given == 0
    assert METHOD.size(settings_of("not there"), Source(rows=40)) == ("set", 0)  # as a rehearsal asks


def test_a_set_with_more_pairs_than_the_data_is_refused_before_the_features(tmp_path: Path) -> None:
    settings = settings_of(ours(tmp_path / "ours"), data=Data(uri="shapes:5?seed=1"))
    message = r"the set has 6 pairs, but data\.uri=shapes:5\?seed=1 has only 5 usable ones to compare with"
    with pytest.raises(UserError, match=message):
        METHOD.look(settings)
    with_all = replace(settings, evaluation=replace(settings.evaluation, baselines=("full",)))
    assert METHOD.look(with_all).rows == 5  # of which no set is drawn that is as large


# ---- reading


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources are read in this process."""

    def read(data: Data) -> SimpleNamespace:
        rows = [row for shard in list_shards(data) for row in iter_shard(shard, data)]
        return SimpleNamespace(iter_rows=lambda: map(asdict, rows))

    monkeypatch.setattr(held_out, "read_pairs", read)


def test_rows_of_one_image_are_joined_and_refused_ones_listed(read_here: None, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", pairs=6, damaged=1)
    (folder / "again.png").write_bytes((folder / "5.png").read_bytes())
    (folder / "again.txt").write_text("another caption of it")
    run = Store(str(tmp_path / "run"))
    listed = RejectList(run.child("set"), run)
    (found,) = read_sets(settings_of(folder), listed)
    assert (found.pairs.n_images, found.pairs.n_pairs, found.rows_in) == (5, 6, 7)
    assert listed.rows == [("set/photos/photos-00000", "0", "not an image")]
    first, tested = found.about["notes"]
    assert first == "1 of its 7 rows were refused"
    assert tested.startswith(
        "its students are tested on procedural scenes, evaluation.test; for a set of photographs"
    )
    strict = settings_of(folder, data=Data(uri="shapes:40?seed=1", max_reject_ratio=0.1))
    with pytest.raises(
        UserError, match=r"^set=.*photos: 1 of the first 7 rows were refused.*max_reject_ratio=0.1"
    ):
        read_sets(strict, listed)


def test_sentence_vectors_are_those_of_the_text_model_and_of_no_other(tmp_path: Path) -> None:
    settings = settings_of(vectors(tmp_path / "lors.pt"))
    (found,) = of_text_model(read_sets(settings), settings.students)
    own = frozen_text_features(found.pairs, settings.students, "cpu", LORS_FROZEN_TEXT)
    assert np.array_equal(own, tensors()["text"].numpy())
    assert isinstance(found.pairs, LearntPairs)
    assert (
        found.pairs.encoder
        == load_text_encoder(settings.students, "cpu", LORS_FROZEN_TEXT.form).weights_digest()
    )
    assumed, levels, learnt, _ = found.notes
    assert re.fullmatch(
        r"its pixels are taken .*: levels of -\d+ to \d+, \d+\.\d% of them outside 0 to 255", levels
    )
    assert assumed == (
        "its sentence vectors are taken to be of students.text_model=tiny-bert, the state of the [CLS] token, as the "
        "file names no encoder"
    )
    assert learnt.startswith("its students learn the similarities")
    # nobody falls back on captions that are not there: another encoder, or the same read by the mean of its tokens
    for pairs, protocol in ((replace(found.pairs, encoder="another"), LORS_FROZEN_TEXT), (found.pairs, None)):
        with pytest.raises(UserError, match="vectors of another text encoder and have no words"):
            frozen_text_features(pairs, settings.students, "cpu", protocol)


def test_a_set_that_changed_is_noted_again_and_compared_again(read_here: None, tmp_path: Path) -> None:
    folder, file = photos(tmp_path / "photos"), vectors(tmp_path / "lors.pt")
    settings = settings_of(ours(tmp_path / "a"), folder, file)
    compared: list[str] = []

    def compare(stage: StageDir) -> StageResult:
        compared.append(changed)
        return StageResult(rows_in=1, rows_out=1)

    (noting,) = (stage for stage in STEPS.stages if stage.name == "set")
    for changed in ("", "nothing", "photos", "vectors", "ours"):
        if changed == "photos":
            (folder / "1.txt").write_text("another caption")
        if changed == "vectors":
            file.write_bytes(saved(tensors() | {"text": torch.zeros(4, 128)}))
        if changed == "ours":
            ours(tmp_path / "a", pairs=3)
        with RunDir.open(str(tmp_path / "run"), "evaluate", "local", settings) as run:
            noted = run_stage(run, noting, Context(run, Draw(0, settings), {}))
            run.stage("evaluate", compare, [noted])
    assert compared == ["", "photos", "vectors", "ours"]
    assert noted.manifest["extra"] == {"pairs": 3}  # as many as baselines get


# ---- paired differences


def scores_of(**runs: list[list[float]]) -> dict[str, Any]:
    return {name: {"mean_recall": spread(of_draws)} for name, of_draws in runs.items()}


def test_differences_of_students_are_those_of_a_paired_t_test() -> None:
    edge, other, random, full = np.random.default_rng(0).normal(20, 2, (4, 5)).tolist()
    scores = scores_of(edge=[edge], other=[other], random=[random], full=[full], chance=[[1.0]])
    found = differences(scores)
    assert {name: list(others) for name, others in found.items()} == {
        "edge": ["other", "random"],
        "other": ["random"],
    }
    for name, theirs in (("other", other), ("random", random)):
        expected = ttest_rel(edge, theirs).confidence_interval(0.95)
        difference = found["edge"][name]
        assert (difference["over"], difference["count"]) == ("students", 5)
        assert difference["metrics"]["mean_recall"] == pytest.approx(
            {"mean": np.mean(edge) - np.mean(theirs), "low": expected.low, "high": expected.high}
        )


def test_all_given_sets_are_compared_with_each_other_and_with_the_small_baselines() -> None:
    scores = scores_of(
        a=[[1.0, 2.0]], b=[[2.0, 4.0]], c=[[5.0, 7.0]], random=[[0.0, 1.0]], full=[[8.0, 9.0]], chance=[[1.0]]
    )
    found = differences(scores)
    assert {name: list(others) for name, others in found.items()} == {
        "a": ["b", "c", "random"],
        "b": ["c", "random"],
        "c": ["random"],
    }
    of_two = {"mean": -4.5, "low": None, "high": None, "lack": "too few"}
    assert found["a"]["c"]["metrics"]["mean_recall"] == of_two


def test_draws_are_paired_where_both_have_as_many_and_otherwise_beside_students() -> None:
    edge = [[10.0, 14.0, 11.0], [13.0, 11.0, 19.0], [12.0, 15.0, 13.0]]
    random = [[7.0, 8.0, 8.5], [6.0, 12.0, 9.0], [9.0, 9.5, 8.0]]
    herding = [[9.0, 9.5, 12.0]]
    found = differences(scores_of(edge=edge, random=random, herding=herding))["edge"]
    draws = np.mean(edge, axis=1)
    for name, paired, test in (
        ("random", True, ttest_rel(draws, np.mean(random, axis=1))),
        ("herding", False, ttest_ind(draws, herding[0], equal_var=False)),
    ):
        expected = test.confidence_interval(0.95)
        assert (found[name]["over"], found[name]["count"], found[name]["paired"]) == ("draws", 3, paired)
        interval = found[name]["metrics"]["mean_recall"]
        assert (interval["low"], interval["high"]) == pytest.approx((expected.low, expected.high))


def test_students_that_agree_do_not_make_a_set_whose_draws_differ_certain() -> None:
    edge = [[9.9, 10.0, 10.1], [11.9, 12.0, 12.1], [13.9, 14.0, 14.1]]
    scores = scores_of(edge=edge, herding=[[11.4, 11.5, 11.6]])
    assert standing(scores["edge"]["mean_recall"], scores["herding"]["mean_recall"]) == "level"
    of_two = differences(scores_of(edge=edge[:2], herding=[[1.4, 1.5, 1.6]]))["edge"]["herding"]
    assert of_two["metrics"]["mean_recall"]["lack"] == "too few"


def test_nothing_is_said_of_one_student() -> None:
    assert differences(scores_of(edge=[[10.0]], random=[[9.0]])) == {}


@pytest.mark.parametrize(
    ("ours", "theirs", "mean", "lack"),
    [
        ([8.0, 9.0], [5.5, 6.5], 2.5, "too few"),
        ([7.6, 8.2, 5.3], [7.3, 7.9, 5.0], 0.3, "all equal"),  # but for rounding
        ([7.5, 8.5], [7.5, 8.5], 0.0, "all zero"),
    ],
)
def test_differences_without_a_spread_have_no_interval(
    ours: list[float], theirs: list[float], mean: float, lack: str
) -> None:
    score = differences(scores_of(edge=[ours], random=[theirs]))["edge"]["random"]["metrics"]["mean_recall"]
    assert score == {"mean": pytest.approx(mean), "low": None, "high": None, "lack": lack}


def test_sets_with_equal_fingerprints_are_the_same_whatever_their_students() -> None:
    scores = scores_of(edge=[[10.0]], random=[[10.0]], herding=[[10.0]])
    found = differences(scores, {"edge": ["a"], "random": ["a"], "herding": ["b"]})
    assert list(found["edge"]) == ["random"]
    assert found["edge"]["random"]["metrics"]["mean_recall"]["lack"] == "same set"
    assert differences(scores, {"edge": [], "random": []}) == {}  # an older run says nothing of them


def test_a_report_says_that_sets_differ_in_size_and_calls_no_real_pairs_synthetic() -> None:
    report = {
        "task": "retrieval",
        "labels": {"edge": "EDGE"},
        "distilled": None,
        "real_images": 100,
        "standings": {},
        "scores": scores_of(edge=[[10.0]], photos=[[9.0]]),
        "sets": {"edge": {"pairs": 6}, "photos": {"pairs": 5}},
        "given": {
            "edge": {"kind": "distilled", "notes": []},
            "photos": {"kind": "pairs", "notes": ["1 of its 7 rows were refused"]},
        },
    }
    assert about_given(report) == [
        "the sets differ in size, so they are no fair comparison: EDGE 6 pairs, photos 5",
        "photos: 1 of its 7 rows were refused",
    ]
    said = headline(report).replace("\u00a0", " ")
    assert (
        said
        == "6 synthetic pairs of EDGE reach 10.0 % mean recall; 5 pairs of photos reach 9.0 % mean recall."
    )
    report["sets"]["photos"]["pairs"] = 6
    assert about_given(report) == ["photos: 1 of its 7 rows were refused"]


# ---- a whole run


QUICK = ["--evaluation.seeds", "3", "--students.steps", "2", "--students.learning_rates", "0.1"]
LORS = ["--evaluation.protocols", "lors-frozen-text"]  # twenty students of a hundred epochs


@pytest.mark.job
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("others", "how"),
    [(["photos"], QUICK), pytest.param(["photos", "lors"], LORS, marks=pytest.mark.long)],
    ids=["two", "three"],
)
def test_sets_of_several_kinds_are_compared_in_one_table(
    others: list[str], how: list[str], tmp_path: Path
) -> None:
    vectors(tmp_path / "lors.pt", px=40)
    files = {"photos": photos(tmp_path / "photos"), "lors": tmp_path / "lors.pt"}
    uris = [ours(tmp_path / "a"), *(files[name] for name in others)]
    # a test image that is in a set, too, under another name
    test = photos(tmp_path / "held out", pairs=12)
    command = [sys.executable, "jobs/evaluate.py", "local", "--run.dir", str(tmp_path / "run"), "--set"]
    command += [str(uri) for uri in uris]
    # validation images are held out of the training data
    data = photos(tmp_path / "data", pairs=40, seed=1)
    command += ["--data.uri", str(data), "--evaluation.val", "20%"]
    command += ["--evaluation.test", str(test), "--evaluation.baselines", "random", "--run.num_cpus", "2"]
    command += how
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    given = ["edge", *others]
    assert list(report["scores"]) == [*given, "random", "chance"]
    sizes = {"edge": 6, "photos": 5, "lors": 4, "random": 6}
    assert all(one["pairs"] == sizes[name] for name, one in report["sets"].items())
    assert {name: list(beside) for name, beside in report["differences"].items()} == (
        {name: [*given[place:], "random"] for place, name in enumerate(given, 1)}
    )
    for first, beside in report["differences"].items():
        for name, found in beside.items():
            left, right = (report["scores"][one]["mean_recall"]["runs"] for one in (first, name))
            interval = ttest_rel(left, right).confidence_interval(0.95)
            assert found["metrics"]["mean_recall"]["low"] == pytest.approx(interval.low, abs=1e-9)
    assert report["held_out"]["val"]["images"] + report["real_images"] == 40
    assert report["held_out"]["val"]["common"]["training"] == 0
    assert report["held_out"]["test"]["common"]["set photos"] == 5
    keys = report["held_out"]["test"]["common_keys"]
    assert {one: len(names) for one, names in keys.items()} == {"set photos": 5}
    page = (tmp_path / "run" / "report.html").read_text()
    for text in (result.stdout, page):
        flat = " ".join(text.split())
        assert ("taken to be of students.text_model=tiny-bert" in flat) == ("lors" in others)
        assert "sets differ in size, so they are no fair comparison: EDGE 6 pairs" in flat
        assert "5 of 12 images are also set photos images, pixel for pixel" in flat
    assert "mean recall of EDGE, difference to … (95 % interval)" in result.stdout
    assert "Differences of mean recall" in page
