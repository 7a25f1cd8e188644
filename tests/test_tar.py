"""Tars: what is read, what is refused, and what damage costs."""

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from source_files import fates, jpeg, pair, read, tar_bytes, write_tar

from mmdd_ray.config import Data
from mmdd_ray.data.pair import PAIR_SCHEMA, Row, pairs_table
from mmdd_ray.data.readers import iter_shard
from mmdd_ray.data.shard import Shard


def test_tar_rows_carry_image_captions_label_and_address(tmp_path):
    uri = write_tar(
        tmp_path / "00012.tar",
        [
            *pair("a", " one\n dog "),
            ("b.PNG", b"png"),
            ("b.json", json.dumps({"captions": ["two cats", "", "cats"], "label": 3}).encode()),
            ("c.webp", b"webp"),
            ("c.json", b'{"caption": null, "text": "a cow"}'),
            ("c.txt", b"not this one"),
            ("c.seg.npy", b"ignored"),
        ],
    )
    assert read(Data(uri=uri)) == [
        Row("00012", 0, "a", jpeg(), ["one dog"], None, None),
        Row("00012", 1, "b", b"png", ["two cats", "cats"], 3, None),
        Row("00012", 2, "c", b"webp", ["a cow"], None, None),
    ]


@pytest.mark.parametrize(
    ("record", "captions"),
    [
        ({"captions": []}, ["a dog"]),
        ({"captions": ["", " "]}, ["a dog"]),
        ({"captions": [None]}, ["a dog"]),
        ({"caption": " \n"}, ["a dog"]),
        ({"captions": [], "caption": "", "text": "two cats"}, ["two cats"]),
        ({"captions": ["", "two cats"], "caption": "no"}, ["two cats"]),
    ],
)
def test_blank_captions_give_way_to_the_next_candidate(tmp_path, record, captions):
    members = [*pair("a"), ("a.json", json.dumps(record).encode())]
    assert [row.captions for row in read(Data(uri=write_tar(tmp_path / "0.tar", members)))] == [captions]


BAD_SAMPLES = {
    "zero-byte image": [("x.jpg", b""), ("x.txt", b"a dog")],
    "missing image": [("x.txt", b"a dog"), ("x.mp4", b"film")],
    "missing caption": [("x.jpg", jpeg())],
    "blank caption": [("x.jpg", jpeg()), ("x.json", b'{"caption": " "}'), ("x.txt", b" \n\t")],
    "caption too long": pair("x", "long " * 300),
    "caption is not UTF-8": [("x.jpg", jpeg()), ("x.txt", b"caf\xe9")],
    "caption is not text": [("x.jpg", jpeg()), ("x.json", b'{"captions": ["a", {"b": 1}]}')],
    "member too large": [("x.jpg", b"0" * (2**20 + 1)), ("x.txt", b"a dog")],
    "unreadable json": [("x.jpg", jpeg()), ("x.json", b'{"caption": "a d'), ("x.txt", b"a dog")],
    "label is not an integer": [("x.jpg", jpeg()), ("x.json", b'{"caption": "a dog", "label": "dog"}')],
    "several images in one sample": [("x.jpg", jpeg()), ("x.png", jpeg()), ("x.txt", b"a dog")],
    "Git LFS pointer": [("x.jpg", b"version https://git-lfs.github.com/spec/v1\n"), ("x.txt", b"a dog")],
}


@pytest.mark.parametrize("reason", BAD_SAMPLES)
def test_a_bad_sample_is_refused_with_its_reason_and_costs_no_other(tmp_path, reason):
    uri = write_tar(tmp_path / "0.tar", [*pair("good"), *BAD_SAMPLES[reason], *pair("last")])
    rows = read(Data(uri=uri, max_member_mib=1, max_caption_chars=1000))
    assert [row.reject for row in rows] == [None, reason, None]
    assert (rows[1].image, rows[1].captions, rows[1].index) == (None, [], 1)


@pytest.mark.parametrize(
    "text", ["null", "[1]", "{" * 10, "[" * 100_000, '{"n": ' + "9" * 5000 + "}", "\x80\x81"]
)
def test_hostile_json_is_refused(tmp_path, text):
    uri = write_tar(
        tmp_path / "0.tar", [*pair("good"), ("x.jpg", jpeg()), ("x.json", text.encode("latin-1"))]
    )
    assert fates(read(Data(uri=uri))) == [("good", None), ("x", "unreadable json")]


def test_a_lone_surrogate_in_json_is_refused_and_never_reaches_arrow(tmp_path):
    uri = write_tar(
        tmp_path / "0.tar", [*pair("good"), ("x.jpg", jpeg()), ("x.json", b'{"caption": "\\ud800"}')]
    )
    rows = read(Data(uri=uri))
    assert fates(rows)[1] == ("x", "caption is not UTF-8")
    assert pairs_table(rows).schema == PAIR_SCHEMA


def test_links_and_devices_are_refused_and_never_followed(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in pair("good"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for kind, name in ((tarfile.SYMTYPE, "a"), (tarfile.LNKTYPE, "b"), (tarfile.CHRTYPE, "c")):
            info = tarfile.TarInfo(f"{name}.jpg")
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    link = "link or device in tar"
    rows = read(Data(uri=str(tmp_path / "0.tar")))
    assert fates(rows) == [("good", None), ("a", link), ("b", link), ("c", link)]


def test_hidden_files_between_members_do_not_split_a_sample(tmp_path):
    (image, text) = pair("./a")
    uri = write_tar(tmp_path / "0.tar", [("./._a.jpg", b"mac"), image, ("./._a.txt", b"mac"), text])
    assert fates(read(Data(uri=uri))) == [("a", None)]


def test_a_tar_cut_anywhere_gives_its_whole_samples_and_says_that_it_was_cut(tmp_path):
    content = tar_bytes([member for n in range(3) for member in pair(f"k{n}", level=n)])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        ends = [member.offset_data + member.size for member in tar][1::2]  # of each sample's last byte
        marker = tar.offset  # where the two zero blocks begin
    data = Data(uri=str(tmp_path / "cut.tar"))
    for cut in {0, 1, *range(0, marker, 150), *range(0, marker, 512), *ends, marker}:
        Path(data.uri).write_bytes(content[:cut])
        rows = read(data)
        accepted = [row.key for row in rows if row.reject is None]
        assert accepted == [f"k{n}" for n, end in enumerate(ends) if end <= cut], cut
        assert rows[-1].reject == "truncated tar", cut
        assert [row.index for row in rows] == list(range(len(rows)))
    Path(data.uri).write_bytes(content[: marker + 512])
    assert fates(read(data)) == [("k0", None), ("k1", None), ("k2", None)]


def test_a_damaged_header_ends_the_tar_with_one_refused_row(tmp_path):
    content = bytearray(tar_bytes(pair("a") + pair("b") + pair("c")))
    at = content.index(b"b.jpg")
    content[at : at + 100] = b"\xff" * 100
    (tmp_path / "0.tar").write_bytes(content)
    assert fates(read(Data(uri=str(tmp_path / "0.tar")))) == [("a", None), ("", "damaged tar")]


def test_zeros_that_read_like_the_end_of_a_tar_do_not_hide_what_follows(tmp_path):
    content = tar_bytes(pair("a") + pair("b") + pair("c"))
    at = content.index(b"b.jpg")
    lost = [("a", None), ("", "damaged tar")]
    data = Data(uri=str(tmp_path / "0.tar"))
    for end, expected in (
        (bytes(512) + content[at + 512 :], lost),  # a header that was zeroed
        (bytes(2**21), lost),  # a download that never filled its file
        (bytes(10240), [("a", None)]),  # as tar ends
        (bytes(2**20), [("a", None)]),  # as it may end
    ):
        Path(data.uri).write_bytes(content[:at] + end)
        assert fates(read(data)) == expected


def test_a_file_that_is_no_tar_is_one_refused_row(tmp_path):
    (tmp_path / "0.tar").write_bytes(b"<html>404</html>" * 100)
    assert fates(read(Data(uri=str(tmp_path / "0.tar")))) == [("", "damaged tar")]


def test_random_damage_to_a_tar_never_raises(tmp_path):
    rng = np.random.default_rng(0)
    content = tar_bytes([member for n in range(4) for member in pair("k" * 120 + str(n))])
    data = Data(uri=str(tmp_path / "0.tar"))
    shard = Shard("0", "tar", data.uri)
    for _ in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(damaged), size=6):
            damaged[place] = rng.integers(256)
        Path(data.uri).write_bytes(damaged)
        assert list(iter_shard(shard, data))


def test_a_tar_is_streamed_one_sample_at_a_time(tmp_path):
    members = [member for n in range(40) for member in ((f"{n}.jpg", b"0" * 2**20), (f"{n}.txt", b"a dog"))]
    data = Data(uri=write_tar(tmp_path / "0.tar", members))
    tracemalloc.start()
    assert sum(len(row.image or b"") for row in iter_shard(Shard("0", "tar", data.uri), data)) == 40 * 2**20
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 6 * 2**20
