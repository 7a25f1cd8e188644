"""Which shards a URI stands for, and which sentence a wrong one gets."""

from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from source_files import fates, jpeg, pair, read, write_json, write_parquet, write_tar

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.data.checks import check_data
from mmdd_ray.data.inventory import read_downloads
from mmdd_ray.data.listing import expand_braces
from mmdd_ray.data.pair import safe_name
from mmdd_ray.data.shapes import pairs
from mmdd_ray.data.shards import find_shards, list_shards
from mmdd_ray.errors import StorageError, UserError


def test_shapes_are_the_pairs_of_the_generator_whatever_the_shard_size():
    drawn = list(pairs(0, 7, seed=5, image_px=16, labelled=True))
    rows = read(Data(uri="shapes:7?seed=5&px=16&labelled=1&world=clean", rows_per_shard=3))
    assert [(row.shard, row.index) for row in rows[2:5]] == [
        ("shapes-00000", 2),
        ("shapes-00001", 0),
        ("shapes-00001", 1),
    ]
    assert [(row.key, row.image, row.captions, row.label, row.reject) for row in rows] == [
        (pair["key"], pair["image"], pair["captions"], pair["label"], None) for pair in drawn
    ]


@pytest.mark.parametrize(
    "uri",
    ["shapes:", "shapes:many", "shapes:5?speed=1", "shapes:5?seed=x", "shapes:5?px=0", "shapes:5?seed=-1"],
)
def test_a_misspelt_shapes_uri_shows_the_right_form(uri):
    with pytest.raises(ValueError, match=r"shapes:ROWS\?seed"):
        list_shards(Data(uri=uri))


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("plain", ["plain"]),
        ("{08..11}.tar", ["08.tar", "09.tar", "10.tar", "11.tar"]),
        ("{8..10}", ["8", "9", "10"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("x{a,b{1..2}}", ["xa", "xb1", "xa", "xb2"]),
    ],
)
def test_braces_expand(pattern, expanded):
    assert expand_braces(pattern) == expanded


@pytest.fixture
def img2dataset(tmp_path) -> Path:
    """Three shards as img2dataset leaves them, side files included; 2 pairs each."""
    for n in range(3):
        write_tar(tmp_path / f"{n:05d}.tar", pair(f"{n:05d}0000", level=n) + pair(f"{n:05d}0001", level=n))
        write_json(tmp_path / f"{n:05d}_stats.json", {"count": 2})
        write_parquet(tmp_path / f"{n:05d}.parquet", {"url": ["http://x"], "status": ["success"]})
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["00000", "00001", "00002"]),
        ("/*", ["00000", "00001", "00002"]),
        ("/*[12].tar", ["00001", "00002"]),
        ("/{00000..00001}.tar", ["00000", "00001"]),
        ("/{00002,00000}.tar", ["00000", "00002"]),
        ("/00001.tar", ["00001"]),
    ],
)
def test_folder_glob_and_braces_find_the_tars_and_no_side_file(img2dataset, pattern, names):
    shards = list_shards(Data(uri=f"{img2dataset}{pattern}"))
    assert [shard.name for shard in shards] == names
    assert [shard.size_bytes for shard in shards] == [
        (img2dataset / f"{n}.tar").stat().st_size for n in names
    ]


def test_shards_of_one_stem_get_different_names(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", pair("x"))
    names = [shard.name for shard in list_shards(Data(uri=f"{tmp_path}/{{a,b}}/0.tar"))]
    assert len(set(names)) == 2
    assert all(safe_name(name) == name for name in names)


def test_a_record_that_may_not_be_seen_is_none(tmp_path, monkeypatch):
    write_tar(tmp_path / "0.tar", pair("x"))
    (shard,) = list_shards(Data(uri=f"{tmp_path}/0.tar"))

    def refuse(error):
        def cat_file(*_):
            raise error

        return cat_file

    local = fsspec.get_filesystem_class("file")
    monkeypatch.setattr(local, "cat_file", refuse(PermissionError("Access Denied")))
    assert read_downloads([shard]) == {}
    monkeypatch.setattr(local, "cat_file", refuse(OSError("timed out")))
    with pytest.raises(StorageError, match="timed out"):
        read_downloads([shard])


def test_validation_data_miss_no_file(tmp_path):
    write_tar(tmp_path / "0.tar", pair("x"))
    data = Data(uri=f"{tmp_path}/{{0..1}}.tar", max_reject_ratio=0.5)
    assert find_shards(data)[1] == ["1.tar"]
    with pytest.raises(ValueError, match=r"^evaluation\.val=.*: 1\.tar is not there; correct the range"):
        check_data(data, Evaluation(val=data.uri, test=f"{tmp_path}/0.tar"))


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("{0}/nowhere", "no such file"),
        ("{0}/nowhere-*.tar", "no file matches"),
        (
            "{0}/{{0..9}}.tar",
            r"9 of 10 files are not there \(1\.tar, 2\.tar, 3\.tar, …\), .*max_reject_ratio=0\.2",
        ),
        ("{0}/{{1..9}}.tar", r"no such file.*1\.tar"),
        ("{0}/{{3..1}}.tar", "runs backwards"),
        ("{0}/empty", "no .tar, no .parquet and no image"),
        ("{0}/film.mp4", "film.mp4; expected .tar or .parquet"),
        ("{0}/broken.json", "is not JSON"),
        ("{0}/empty.tar", "holds no rows"),
        ("{0}/empty.parquet", "holds no rows"),
        ("nosuch://bucket/x.tar", "nosuch"),
        ("gs://bucket/x.tar", "gcsfs"),
    ],
)
def test_a_uri_without_data_is_one_sentence(tmp_path, uri, complaint):
    (tmp_path / "empty").mkdir()
    (tmp_path / "film.mp4").write_bytes(b"film")
    (tmp_path / "broken.json").write_text("{")
    write_tar(tmp_path / "0.tar", pair("x"))
    write_tar(tmp_path / "empty.tar", [])
    write_parquet(
        tmp_path / "empty.parquet", {"image": pa.array([], "binary"), "text": pa.array([], "string")}
    )
    with pytest.raises(ValueError, match=complaint) as caught:
        list_shards(Data(uri=uri.format(tmp_path)))
    assert "\n" not in str(caught.value)


def test_a_tar_of_other_things_says_what_it_holds(tmp_path):
    films = write_tar(tmp_path / "films.tar", [("0.mp4", b"film"), ("0.json", b'{"title": "x", "url": "y"}')])
    with pytest.raises(
        ValueError, match=r"image \(jpg.*found members .json, .mp4 and JSON keys \['title', 'url'\]"
    ):
        list_shards(Data(uri=films))
    silent = write_tar(tmp_path / "silent.tar", [("0.jpg", jpeg()), ("0.json", b'{"title": "x"}')])
    with pytest.raises(ValueError, match="json with captions, caption, text"):
        list_shards(Data(uri=silent))
    assert fates(read(Data(uri=silent, caption_columns=("title",)))) == [("0", None)]


WRONG = [("0.mp4", b"film"), ("0.json", b'{"title": "x"}')]
DAMAGED = [*pair("0")[:1], ("0.json", b"{")]


@pytest.mark.parametrize(
    ("heads", "accepted"),
    [
        ([None, WRONG], False),
        ([DAMAGED + WRONG], False),
        ([None, DAMAGED, WRONG, pair("x")], True),
        ([WRONG] * 3 + [pair("x")], True),
        ([WRONG] * 4 + [pair("x")], False),
        ([[]] * 9 + [pair("x")], True),
        ([None] * 9 + [WRONG], False),
        ([None] * 9, True),
        ([DAMAGED], True),
        ([[]] * 9, False),
        ([[]] * 100, True),  # it stops looking; nothing is proven
    ],
)
def test_damaged_and_empty_tars_prove_nothing_about_the_layout(tmp_path, heads, accepted):
    for n, members in enumerate(heads):
        if members is None:
            (tmp_path / f"{n:03d}.tar").touch()
        else:
            write_tar(tmp_path / f"{n:03d}.tar", members)
    data = Data(uri=str(tmp_path))
    if accepted:
        assert len(list_shards(data)) == len(heads)
    else:
        with pytest.raises(UserError, match=r"none of the first 1 samples|holds no rows"):
            list_shards(data)


def test_unreadable_and_empty_parquet_prove_nothing_about_the_columns(tmp_path):
    good, wrong = {"image": [b"a"], "text": ["b"]}, {"image": [b"a"], "title": ["b"]}
    for n in range(5):
        (tmp_path / f"a{n}.parquet").write_bytes(b"PAR1 and no footer")
        write_parquet(tmp_path / f"b{n}.parquet", {"title": pa.array([], "string")})
    write_parquet(tmp_path / "c.parquet", wrong)
    with pytest.raises(UserError, match=r"data.caption_columns .* columns image, title"):
        list_shards(Data(uri=str(tmp_path)))
    write_parquet(tmp_path / "d.parquet", good)
    assert len(list_shards(Data(uri=str(tmp_path)))) == 12
    assert len(list_shards(Data(uri=f"{tmp_path}/a*"))) == 5
    with pytest.raises(UserError, match="holds no rows"):
        list_shards(Data(uri=f"{tmp_path}/b*"))


def test_labels_in_tars_that_are_no_integers_show_before_the_run(tmp_path):
    record = b'{"caption": "a dog", "label": "dog", "class": 3}'
    samples = [member for n in range(3) for member in ((f"{n}.jpg", jpeg()), (f"{n}.json", record))]
    uri = write_tar(tmp_path / "0.tar", samples)
    with pytest.raises(
        UserError, match=r"data.label_column='label' holds 'dog' .*'caption', 'class', 'label'"
    ):
        list_shards(Data(uri=uri))
    assert {row.label for row in read(Data(uri=uri, label_column="class"))} == {3}
    assert {(row.label, row.reject) for row in read(Data(uri=uri, label_column=""))} == {(None, None)}


@pytest.mark.parametrize("settings", [{"limit": 0}, {"rows_per_shard": 0}, {"split": "train"}])
def test_settings_that_make_no_sense_are_named(settings):
    with pytest.raises(ValueError, match=f"data.{next(iter(settings))}="):
        list_shards(Data(uri="shapes:5", **settings))


def test_s3_reads_like_a_local_folder(s3_server, img2dataset):
    fs = fsspec.filesystem("s3")
    fs.mkdir("pairs")
    fs.put(f"{img2dataset}/*", "pairs/cc3m/")
    fs.pipe("pairs/photos/cat/1.jpg", jpeg(1))
    fs.pipe("pairs/photos/cat/2.jpg", b"")
    local = read(Data(uri=str(img2dataset)))
    for pattern in ("", "/", "/*.tar", "/{00000..00002}.tar"):
        assert read(Data(uri=f"s3://pairs/cc3m{pattern}")) == local
    assert {row.reject for row in read(Data(uri="s3://pairs/photos"))} == {None, "zero-byte image"}
    for uri, complaint in (("s3://pairs/cc4m", "no such file"), ("s3://no-bucket/x.tar", "no such file")):
        with pytest.raises(ValueError, match=complaint):
            list_shards(Data(uri=uri))


@pytest.mark.parametrize("uri", ["", "  "])
def test_an_empty_uri_is_not_the_current_folder(uri: str) -> None:
    with pytest.raises(UserError, match=r"^data\.uri is empty; name a file"):
        list_shards(Data(uri=uri))


def test_a_missing_file_is_named_once(tmp_path: Path) -> None:
    uri = f"{tmp_path}/none.tar"
    with pytest.raises(UserError) as error:
        list_shards(Data(uri=uri))
    assert str(error.value) == f"data.uri={uri}: no such file, folder or bucket"
