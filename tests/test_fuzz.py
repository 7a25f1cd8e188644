"""Hostile and broken input of every format: nothing crashes, hangs, names a file elsewhere, or is dropped uncounted.

A few hundred generated cases of each; `make fuzz` tries ten thousand (MMDD_FUZZ_CASES).
"""
# over 400 lines: the formats share their strategies and their judge

import io
import json
import os
import posixpath
import re
import tarfile
from collections import defaultdict
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmdd_ray.config import Data
from mmdd_ray.data.formats.annotations import json_entries
from mmdd_ray.data.formats.parquet import parquet_rows
from mmdd_ray.data.formats.tar import tar_rows
from mmdd_ray.data.images import BadImage, decode_image
from mmdd_ray.data.pair import IMAGE_SUFFIXES, Row, RowMaker
from mmdd_ray.distilled.card import escape_markdown
from mmdd_ray.errors import UserError

CASES = int(os.environ.get("MMDD_FUZZ_CASES", "200"))
TEXTS_A_CASE = 20
# a case that takes longer hangs, for all that a user can tell
generated = settings(
    max_examples=CASES,
    deadline=timedelta(seconds=20),
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
in_batches = settings(generated, max_examples=-(-CASES // TEXTS_A_CASE))

DATA = Data(uri="any", max_member_mib=1, max_caption_chars=500)
PX, MAX_PIXELS = 8, 100_000


def judge(rows: list[Row]) -> None:
    """What every reader promises of its rows, whatever it read."""
    assert [row.index for row in rows] == list(range(len(rows)))
    usable = [row for row in rows if row.reject is None]
    for row in rows:
        assert re.fullmatch(r"[\w.-]{0,100}", row.key, re.ASCII)
        assert not row.key.startswith(".")
        if row.reject is not None:
            assert row.reject
            assert row.image is None
            assert not row.captions
    for row in usable:
        assert row.image
        assert row.captions
        assert all(caption == " ".join(caption.split()) != "" for caption in row.captions)
        assert row.label is None or -(2**63) <= row.label < 2**63
        decode(row.image)
    pa.Table.from_pylist([{"captions": row.captions, "key": row.key, "label": row.label} for row in rows])


def decode(content: bytes) -> None:
    try:
        image = decode_image(content, max_pixels=MAX_PIXELS, image_px=PX)
    except BadImage:
        return
    assert (image.shape, image.dtype) == ((PX, PX, 3), np.uint8)


@st.composite
def damaged(draw: st.DrawFn, content: bytes, most: int = 12) -> bytes:
    """The content with some bytes changed, put in or taken out, or cut off."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        kind = draw(st.sampled_from(("change", "change", "change", "cut", "insert", "remove")))
        if kind == "change" and found:
            found[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del found[at:]
        elif kind == "insert":
            found[at:at] = draw(st.binary(max_size=16))
        else:
            del found[at : at + draw(st.integers(1, 32))]
    return bytes(found)


# ---- images


@cache
def images() -> list[bytes]:
    """Small whole images of every format and of most pixel formats, with metadata, layers and frames."""
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # held sideways
    found = []
    for kind, modes in {
        "JPEG": ("RGB", "L", "CMYK"),
        "PNG": ("RGB", "RGBA", "P", "LA", "I;16", "1"),
        "WEBP": ("RGB", "RGBA"),
        "GIF": ("P",),
        "BMP": ("RGB", "L"),
        "TIFF": ("RGB", "F", "CMYK", "I;16"),
    }.items():
        for mode in modes:
            image = rgb.convert("I").convert(mode) if mode == "I;16" else rgb.convert(mode)
            file = io.BytesIO()
            more: dict[str, Any] = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
            if kind == "JPEG":
                more["icc_profile"] = b"\1" * 200
            if kind in ("GIF", "WEBP"):
                more |= {"save_all": True, "append_images": [image.rotate(90)] * 2}
            image.save(file, kind, **more)
            found.append(file.getvalue())
    return found


@generated
@given(st.data())
def test_bytes_are_an_image_or_are_refused(data: st.DataObject) -> None:
    decode(data.draw(st.sampled_from(images()).flatmap(damaged)))


# ---- tars

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
STEMS = st.sampled_from(
    ("a", "b", "c", "ü", "dir/a", "/etc/passwd", "../../up", "..", ".hidden", "x" * 300, "猫")
)
SUFFIXES = st.sampled_from(
    (
        *IMAGE_SUFFIXES,
        "txt",
        "json",
        "PNG",
        "seg.png",
        "npy",
        "",
        "cls",
        "v1.jpg",
        "v1.txt",
        "v2.jpg",
        "v2.json",
    )
)
KINDS = st.sampled_from(
    (
        *[tarfile.REGTYPE] * 12,
        *(
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.BLKTYPE,
            tarfile.FIFOTYPE,
            tarfile.DIRTYPE,
        ),
    )
)


def records() -> st.SearchStrategy[bytes]:
    """JSON members: of captions and labels of any type, nested a thousand deep, or no JSON at all."""
    whole = st.fixed_dictionaries(
        {}, optional={"captions": JSON, "caption": JSON, "text": JSON, "label": JSON, "key": JSON}
    ).map(lambda record: json.dumps(record).encode())
    deep = st.sampled_from(
        (b"[" * 1000, b'{"caption":' * 1000 + b"1" + b"}" * 1000, b"[" * 100_000, b"\xff\xfe")
    )
    return whole | whole | whole | deep | whole.flatmap(damaged)


TEXT_MEMBERS = st.one_of(
    st.text(max_size=40).map(lambda text: text.encode(errors="surrogatepass")),
    st.binary(max_size=40),
    st.sampled_from(
        (
            b"",
            b" \t",
            b"a cat",
            b"x" * 2000,
            "نص \u202e عربي".encode(),
            b"<script>alert(1)</script>",
            b"\0\1\2",
        )
    ),
)


@st.composite
def members(draw: st.DrawFn) -> tuple[str, bytes, bytes]:
    """Name, type and content of a tar member."""
    suffix = draw(SUFFIXES)
    name = f"{draw(STEMS)}.{suffix}" if suffix else draw(STEMS)
    if suffix.endswith("json"):
        content = draw(records())
    elif suffix.endswith(("txt", "cls")):
        content = draw(TEXT_MEMBERS)
    else:
        whole = st.sampled_from(images())
        content = draw(whole | whole | st.binary(max_size=64))
    return name, draw(KINDS), content


def tar_of(found: list[tuple[str, bytes, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, content in found:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (
                kind,
                "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "",
            )
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def read_tar(content: bytes) -> list[Row]:
    return list(tar_rows(io.BytesIO(content), RowMaker("shard", DATA)))


@generated
@given(st.lists(members(), max_size=8))
def test_every_sample_of_a_tar_is_counted(found: list[tuple[str, bytes, bytes]]) -> None:
    rows = read_tar(tar_of(found))
    judge(rows)
    runs: list[tuple[str, list[str]]] = []  # key and suffixes of neighbours, plainly
    for name, kind, _ in found:
        folder, stem = posixpath.split(name.removeprefix("./"))
        stem, _, suffix = stem.partition(".")
        if kind == tarfile.DIRTYPE or not stem:
            continue
        key, suffix = f"{folder}/{stem}".lstrip("/"), suffix.lower()
        if not runs or runs[-1][0] != key or suffix in runs[-1][1]:
            runs.append((key, []))
        runs[-1][1].append(suffix)
    assert len(rows) == sum(samples_of(suffixes) for _, suffixes in runs)


def samples_of(suffixes: list[str]) -> int:
    """How many samples the members of one key are."""
    text, parts = ("txt", "json", "cls"), defaultdict(set)
    for suffix in suffixes:
        stem, kind = posixpath.splitext(f"x.{suffix}")
        parts[stem].add(kind[1:])
    pairs = [s for s, kinds in parts.items() if s != "x" and kinds & {*IMAGE_SUFFIXES} and kinds & {*text}]
    others = {stem for stem in parts if stem not in pairs}
    if "x" in others:
        return len(pairs) + 1
    read = {kind for kinds in parts.values() for kind in kinds} & {*IMAGE_SUFFIXES, *text}
    return len(pairs) + len(others) if pairs or (read and not read & {*text}) else 1


@generated
@given(st.lists(members(), min_size=1, max_size=6).map(tar_of).flatmap(damaged))
def test_a_damaged_tar_ends_in_rows(content: bytes) -> None:
    judge(read_tar(content))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("claimed", "reasons"),
    [
        (2**20 + 1, ["member too large", "truncated tar"]),
        (2**40, ["member too large", "truncated tar"]),
        (2**62, ["member too large", "truncated tar"]),
        (2**19, ["truncated tar"]),
        (-1, ["damaged tar"]),
        (-1024, ["damaged tar"]),
    ],
)
def test_a_member_that_lies_about_its_size_costs_nothing(claimed: int, reasons: list[str]) -> None:
    content = bytearray(
        tar_of([("a.png", tarfile.REGTYPE, images()[0]), ("a.txt", tarfile.REGTYPE, b"a cat")])
    )
    member = tarfile.TarInfo("a.png")
    member.size = claimed
    content[:512] = member.tobuf(tarfile.GNU_FORMAT)
    rows = read_tar(bytes(content))
    judge(rows)
    assert [row.reject for row in rows] == reasons


# ---- Parquet

COLUMNS = ("image", "caption", "captions", "text", "key", "label", "other")
VALUES: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "binary": (pa.binary(), st.binary(max_size=30) | st.sampled_from(images())),
    "string": (pa.string(), st.text(max_size=30)),
    "integer": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "unsigned": (pa.uint64(), st.integers(0, 2**64 - 1)),
    "float": (pa.float32(), st.floats(width=32)),
    "strings": (pa.list_(pa.string()), st.lists(st.text(max_size=20) | st.none(), max_size=4)),
    "struct": (
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        st.fixed_dictionaries({"bytes": st.binary(max_size=30) | st.none(), "path": st.just("/etc/passwd")}),
    ),
    "words": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(("a", "b", ""))),
    "times": (pa.timestamp("ns"), st.integers(-(2**62), 2**62)),
    "nothing": (pa.null(), st.none()),
}
USUAL = {"image": "binary", "caption": "string", "key": "string", "label": "integer"}


@st.composite
def parquet_files(draw: st.DrawFn) -> tuple[bytes, int]:
    """A Parquet file with the columns that are looked for, mostly of the usual types, and its rows."""
    rows = draw(st.integers(0, 12))
    names = draw(st.lists(st.sampled_from(COLUMNS), unique=True, min_size=1) | st.just(list(USUAL)))
    columns = {}
    for name in names:
        own = USUAL.get(name, "string")
        kind, values = VALUES[draw(st.sampled_from([own, own, own, *VALUES]))]
        columns[name] = pa.array(draw(st.lists(values | st.none(), min_size=rows, max_size=rows)), kind)
    file = io.BytesIO()
    options = {"row_group_size": draw(st.integers(1, 12)), "write_page_checksum": draw(st.booleans())}
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue(), rows


def read_parquet(content: bytes) -> list[Row]:
    return list(parquet_rows(io.BytesIO(content), RowMaker("shard", DATA), None))


@generated
@given(parquet_files())
def test_every_row_of_a_parquet_file_is_counted(found: tuple[bytes, int]) -> None:
    content, rows = found
    read = read_parquet(content)
    judge(read)
    assert len(read) == rows


@generated
@given(parquet_files().flatmap(lambda found: damaged(found[0])))
def test_a_damaged_parquet_file_ends_in_rows(content: bytes) -> None:
    judge(read_parquet(content))


# ---- annotations

NAMES = st.sampled_from(
    ("1.jpg", "a/1.jpg", "../up.jpg", "/etc/passwd", "", "a//b.jpg", "x" * 400, "\0.jpg", "猫.png")
)
ODD = NAMES | JSON
DOCUMENTS = st.one_of(
    JSON,
    st.lists(
        st.dictionaries(st.sampled_from(("image", "file_name", "caption", "text", "label")), ODD), max_size=5
    ),
    st.fixed_dictionaries(
        {
            "images": st.lists(st.fixed_dictionaries({"id": ODD, "file_name": ODD}), max_size=4) | JSON,
            "annotations": st.lists(st.fixed_dictionaries({"image_id": ODD, "caption": ODD}), max_size=6)
            | JSON,
        }
    ),
    st.fixed_dictionaries(
        {
            "images": st.lists(
                st.fixed_dictionaries(
                    {
                        "filename": ODD,
                        "sentences": st.lists(st.fixed_dictionaries({"raw": ODD}), max_size=3) | JSON,
                    },
                    optional={
                        "filepath": ODD,
                        "split": st.sampled_from(("train", "val")) | JSON,
                        "label": ODD,
                    },
                ),
                max_size=4,
            )
        }
    ),
)


@generated
@given(DOCUMENTS, st.sampled_from((None, "train")))
def test_annotations_name_files_inside_their_folder_or_are_refused(document: Any, split: str | None) -> None:
    data = Data(uri="x.json", split=split)
    try:
        entries = json_entries(document, "/images", data).entries
    except UserError:
        return
    maker = RowMaker("shard", data)
    for entry in entries:
        if entry.path is not None:
            inside = posixpath.normpath(posixpath.join("/images", "./" + entry.path))
            assert inside.startswith("/images/")
    judge(
        [maker.make(entry.key, images()[0], entry.captions, entry.label, entry.reject) for entry in entries]
    )


# ---- captions and prompts

CAPTIONS = st.text(
    st.characters(codec="utf-8") | st.sampled_from("\u202e\u200d\0\x1b<>&\ufeff\U0001f468"),
    min_size=1,
    max_size=200,
).map(lambda text: " ".join(text.split()))
BATCHES = st.lists(CAPTIONS, min_size=TEXTS_A_CASE, max_size=TEXTS_A_CASE)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    from mmdd_ray.models.generators.stable_diffusion import load_pipeline

    return load_pipeline("tiny-sd")


@pytest.fixture(scope="module")
def clip() -> Any:
    from mmdd_ray.models.clip import load_clip

    return load_clip("tiny-clip")


@in_batches
@given(BATCHES)
def test_captions_of_any_script_have_features(clip: Any, captions: list[str]) -> None:
    assert np.isfinite(clip.encode_texts(captions).numpy()).all()


@in_batches
@given(BATCHES)
def test_prompts_of_any_script_and_length_can_be_drawn_from(pipeline: Any, prompts: list[str]) -> None:
    from mmdd_ray.models.generators.stable_diffusion.drawing import _chunks, encode_prompts

    for prompt in prompts:
        states, _ = encode_prompts(pipeline, [prompt * 3], "")
        assert states.isfinite().all()
        assert states.shape[1] == len(_chunks(pipeline, prompt * 3)) * pipeline.tokenizer.model_max_length


@in_batches
@given(BATCHES, st.text(max_size=20))
def test_words_of_any_script_are_counted(descriptions: list[str], class_name: str) -> None:
    from mmdd_ray.methods.vlcp.prototypes import rank_descriptions, word_counts

    counts = word_counts(descriptions, class_name, 0.7)
    assert counts.shape[0] == len(descriptions)
    assert sorted(rank_descriptions(counts, 30)) == list(range(len(descriptions)))


@generated
@given(CAPTIONS)
def test_captions_stay_text_in_markdown(caption: str) -> None:
    from markdown_it import MarkdownIt

    assume(caption)
    page = MarkdownIt("gfm-like", {"linkify": False}).renderInline(escape_markdown(caption))
    assert "<" not in page
    assert "href" not in page or "href" in caption
