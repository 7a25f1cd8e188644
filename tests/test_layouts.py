"""Sources, tars, Parquet and tables as people have them: read for what they are, or refused before the run."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
import pytest
from source_files import (
    captions_of,
    coco,
    fates,
    jpeg,
    pair,
    read,
    says,
    tar_bytes,
    write_images,
    write_json,
    write_parquet,
    write_tar,
)

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.data.checks import check_data
from mmdd_ray.data.compression import codec_of
from mmdd_ray.data.formats.samples import listed_texts
from mmdd_ray.data.shards import list_shards
from mmdd_ray.errors import UserError

# ---- several sources


def test_sources_are_read_one_after_the_other_each_with_its_own_rows(tmp_path):
    for source, count in (("cc3m", 2), ("sbu", 1)):
        (tmp_path / source).mkdir()
        for number in range(count):
            write_tar(tmp_path / source / f"{number:05d}.tar", pair("k0") + pair("k1", level=number))
    write_images(tmp_path / "pets", "cat/0.jpg", "dog/0.jpg")
    tars = f"{tmp_path}/cc3m/{{00000..00001}}.tar::{tmp_path}/sbu/00000.tar"
    rows = read(Data(uri=tars))
    assert [row.key for row in rows] == ["k0", "k1"] * 3
    assert len({(row.shard, row.key) for row in rows}) == 6
    both = Data(uri=f"{tars}::{tmp_path}/pets")
    assert [row.reject for row in read(both)] == [None] * 8
    assert says(both.uri) == [
        f"{tmp_path}/cc3m/{{00000..00001}}.tar: 2 tars",
        f"{tmp_path}/sbu/00000.tar: 1 tar",
        f"{tmp_path}/pets: 2 images in 2 classes: cat, dog",
    ]


def test_files_that_a_shell_wrote_out_are_one_source(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", pair("x", level=number))
    write_parquet(tmp_path / "3.parquet", {"image": [jpeg()], "text": ["a dog"]})
    written = "::".join(f"{tmp_path}/{name}" for name in ("0.tar", "1.tar", "2.tar", "3.parquet"))
    where = f"{tmp_path}/{{0.tar,1.tar,2.tar,3.parquet}}"
    assert says(written) == [f"{where}: 3 tars", f"{where}: 1 Parquet file"]
    assert [shard.kind for shard in list_shards(Data(uri=written))] == ["tar"] * 3 + ["parquet"]


def test_files_of_several_kinds_in_one_pattern_are_all_read_or_refused(tmp_path):
    write_tar(tmp_path / "a.tar", pair("x"))
    write_tar(tmp_path / "a.tgz", pair("y"))
    write_parquet(tmp_path / "b.parquet", {"image": [jpeg()] * 2, "text": ["a dog", "a cat"]})
    rows = read(Data(uri=f"{tmp_path}/{{a.tar,b.parquet,a.tgz}}"))
    assert len(rows) == 4
    assert len({row.shard for row in rows}) == 3
    with pytest.raises(UserError, match=r"tars and Parquet files that do not belong"):
        list_shards(Data(uri=f"{tmp_path}/*"))


def test_classes_of_several_image_folders_are_numbered_together(tmp_path):
    write_images(tmp_path / "a", "cat/0.jpg", "fox/0.jpg")
    write_images(tmp_path / "b", "dog/0.jpg", "cat/1.jpg")
    rows = read(Data(uri=f"{tmp_path}/a::{tmp_path}/b"))
    assert {(row.captions[0], row.label) for row in rows} == {("cat", 0), ("dog", 1), ("fox", 2)}


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("{0}/0.tar::{0}/0.tar", "twice"),
        ("{0}/0.tar::{0}/*.tar", "twice"),
        ("{0}/0.tar::", "names nothing on one side"),
        ("simplecache::{0}/0.tar", "stands between sources, and simplecache is none"),
        ("{0}/0.tar::{0}/nowhere.tar", r"nowhere\.tar is not there, of "),
    ],
)
def test_sources_that_are_none_are_one_sentence(tmp_path, uri, complaint):
    write_tar(tmp_path / "0.tar", pair("x"))
    with pytest.raises(UserError, match=complaint):
        list_shards(Data(uri=uri.format(tmp_path)))


# ---- tars


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".tar", gzip.compress),
        (".tar.gz", gzip.compress),
        (".tgz", gzip.compress),
        (".tar.bz2", bz2.compress),
        (".tar.zst", lambda content: pa.compress(content, "zstd", asbytes=True)),
        (".tar.xz", lzma.compress),
    ],
)
def test_compressed_tars_are_read_and_damage_to_them_is_told(
    tmp_path, suffix: str, compress: Callable[[bytes], bytes]
):
    members = [member for n in range(4) for member in pair(f"k{n}", level=n)]
    content = compress(tar_bytes(members))
    path = tmp_path / f"00000{suffix}"
    path.write_bytes(content)
    data = Data(uri=str(tmp_path))
    assert [shard.name for shard in list_shards(data)] == ["00000"]
    assert fates(read(data)) == [(f"k{n}", None) for n in range(4)]
    path.write_bytes(content[: len(content) - 12])
    assert read(Data(uri=str(path)))[-1].reject in ("damaged compression", "truncated tar")


def test_names_of_compressions():
    assert [codec_of(head) for head in (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"a.jpg", b"")] == [
        "gzip",
        "zstd",
        None,
        None,
    ]


def test_dots_in_keys_cost_no_sample(tmp_path):
    members = [member for n in range(3) for member in pair(f"photo_v1.{n}", level=n)] + pair("plain")
    rows = read(Data(uri=write_tar(tmp_path / "0.tar", members)))
    assert [row.image for row in rows] == [jpeg(0), jpeg(1), jpeg(2), jpeg()]
    assert [row.reject for row in rows] == [None] * 4
    assert len({row.key for row in rows}) == 4


def test_dotted_keys_that_lack_a_member_cost_that_sample_alone(tmp_path):
    members = []
    for n in range(60):
        own = pair(f"frame.{n:04d}", level=n)
        members += own[:1] if n % 10 == 5 else own
    rows = read(Data(uri=write_tar(tmp_path / "0.tar", members)))
    assert [row.reject for row in rows] == ["missing caption" if n % 10 == 5 else None for n in range(60)]
    assert [row.image for row in rows if row.image] == [jpeg(n) for n in range(60) if n % 10 != 5]


def test_a_plain_sample_among_dotted_ones_swallows_none(tmp_path):
    for count in (3, 12):
        dotted = [member for n in range(count) for member in pair(f"a.{n}", level=n + 1)]
        for number, members in enumerate(
            ([*dotted, *pair("a")], [*pair("a"), ("a.mask.png", jpeg()), *dotted])
        ):
            rows = read(Data(uri=write_tar(tmp_path / f"{count}-{number}.tar", members)))
            assert sorted(row.image or b"" for row in rows) == sorted(jpeg(n) for n in range(count + 1))
            assert [row.reject for row in rows] == [None] * (count + 1)


def test_hidden_folders_of_a_tar_are_no_data(tmp_path):
    members = [
        *pair("a/x"),
        ("__MACOSX/a/._x.jpg", b"mac"),
        (".cache/y.jpg", jpeg()),
        ("__MACOSX/z.jpg", jpeg()),
    ]
    assert [row.key.partition("-")[0] for row in read(Data(uri=write_tar(tmp_path / "0.tar", members)))] == [
        "a_x"
    ]


def test_shards_that_differ_in_the_lines_of_texts_are_read_alike(tmp_path):
    for number, text in enumerate(("one\ntwo", "one", "one\ntwo")):
        write_tar(tmp_path / f"{number}.tar", pair("x", text, level=number))
    assert [row.captions for row in read(Data(uri=str(tmp_path)))] == [["one two"], ["one"], ["one two"]]
    assert "in some shards each line of a .txt is a caption, and in others not" in says(tmp_path)[1]


def test_a_sample_with_one_image_and_one_text_of_any_name_is_whole(tmp_path):
    members = [m for n in range(3) for m in ((f"{n}.image.jpg", jpeg(n)), (f"{n}.caption.txt", b"a dog"))]
    rows = read(Data(uri=write_tar(tmp_path / "0.tar", members)))
    assert [(row.key, row.image, row.captions) for row in rows] == [
        (str(n), jpeg(n), ["a dog"]) for n in range(3)
    ]


def test_several_images_of_a_sample_want_one_to_be_named(tmp_path):
    members = [("a.input.jpg", jpeg(1)), ("a.target.jpg", jpeg(2)), ("a.txt", b"a dog")]
    uri = write_tar(tmp_path / "0.tar", members)
    with pytest.raises(
        UserError, match=r"several images: \.input\.jpg, \.target\.jpg; name one.* data.image_column="
    ):
        list_shards(Data(uri=uri))
    assert [row.image for row in read(Data(uri=uri, image_column="target.jpg"))] == [jpeg(2)]
    with pytest.raises(UserError, match=r"no sample of .* has data.image_column='depth.png'"):
        list_shards(Data(uri=uri, image_column="depth.png"))
    aside = [*pair("a", level=1), ("a.seg.png", jpeg(2))]
    assert [row.image for row in read(Data(uri=write_tar(tmp_path / "1.tar", aside)))] == [jpeg(1)]


def test_lines_of_a_text_are_captions_where_all_have_several(tmp_path):
    five = "\n".join(f"view {n}" for n in range(5))
    uri = write_tar(tmp_path / "0.tar", [m for n in range(3) for m in pair(f"k{n}", f"{five}\n", level=n)])
    assert [row.captions for row in read(Data(uri=uri))] == [[f"view {n}" for n in range(5)]] * 3
    assert says(uri) == ["1 tar", "each line of a .txt is a caption"]
    mixed = write_tar(tmp_path / "1.tar", pair("a", "one\ncaption") + pair("b", "another"))
    assert [row.captions for row in read(Data(uri=mixed))] == [["one caption"], ["another"]]
    assert "1 of the first 2 .txt have several lines" in says(mixed)[1]


def test_a_text_and_json_that_differ_are_noted(tmp_path):
    uri = write_tar(tmp_path / "0.tar", [*pair("a"), ("a.json", b'{"caption": "IMG_1234.JPG"}')])
    assert "of 1 of the first 1 samples, JSON (captions, caption, text) and .txt differ" in says(uri)[1]
    assert [row.captions for row in read(Data(uri=uri, caption_columns=()))] == [["a dog"]]


@pytest.mark.parametrize(
    ("members", "settings", "complaint"),
    [
        (
            [("a.jpg", jpeg()), ("b.jpg", jpeg()), ("a.txt", b"x"), ("b.txt", b"y")],
            {},
            r"not neighbours .* 'a'.*--sort=name",
        ),
        ([("a.jpg", jpeg()), ("a.cls", b"n01440764")], {"needs_captions": False}, r"\.cls holds 'n01440764'"),
        ([("a.jpg", jpeg()), ("a.en.md", b"x")], {}, "a key ends at the first dot"),
    ],
)
def test_odd_tars_are_one_sentence(tmp_path, members, settings, complaint):
    uri = write_tar(tmp_path / "0.tar", members)
    with pytest.raises(UserError, match=complaint):
        list_shards(Data(uri=uri, **settings))


@pytest.mark.parametrize("name", ["0.tar", "0.parquet", "a/0.jpg", "c.json"])
def test_git_lfs_pointers_are_told_before_the_run(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UserError, match=r"is a Git LFS pointer"):
        list_shards(Data(uri=str(path if path.suffix != ".jpg" else tmp_path)))


def test_utf16_without_a_mark_is_not_taken_for_text(tmp_path):
    uri = write_tar(
        tmp_path / "0.tar", [*pair("a"), ("b.jpg", jpeg()), ("b.txt", "a dog".encode("utf-16-le"))]
    )
    assert fates(read(Data(uri=uri))) == [("a", None), ("b", "caption is not UTF-8")]


def test_records_that_are_none_are_told_before_the_run(tmp_path):
    members = [*pair("a"), ("a.json", b'["a dog"]'), *pair("b"), ("b.json", b"[]")]
    with pytest.raises(
        UserError, match=r"none of the first 2 samples of .* can be used: 2 JSON is no object"
    ):
        list_shards(Data(uri=write_tar(tmp_path / "0.tar", members)))


@pytest.mark.parametrize("text", ["a dog".encode("utf-16-le"), "caf\xe9".encode("latin-1"), b" \n"])
def test_texts_that_cannot_be_read_are_told_before_the_run(tmp_path, text):
    uri = write_tar(tmp_path / "0.tar", [("a.jpg", jpeg()), ("a.txt", text)])
    with pytest.raises(
        UserError, match=r"none of the first 1 samples of .* can be used: 1 (caption is|blank)"
    ):
        list_shards(Data(uri=uri))


def test_a_null_among_captions_is_left_out(tmp_path):
    record = {"captions": ["good one", None]}
    uri = write_tar(tmp_path / "0.tar", [("a.jpg", jpeg()), ("a.json", json.dumps(record).encode())])
    assert [row.captions for row in read(Data(uri=uri))] == [["good one"]]


# ---- Parquet


def test_img2datasets_parquet_has_rows_that_were_never_downloaded(tmp_path):
    columns = {
        "key": [*"abc"],
        "jpg": [jpeg(1), None, None],
        "url": ["http://x"] * 3,
        "caption": ["a dog"] * 3,
        "status": ["success", "failed_to_download", "success"],
        "error_message": [None, "404", None],
    }
    uri = write_parquet(tmp_path / "00000.parquet", columns)
    rows = read(Data(uri=uri))
    assert [(row.key, row.index, row.reject) for row in rows] == [("a", 0, None), ("c", 2, "missing image")]
    assert rows == read(Data(uri=uri, image_column="jpg"))


IMAGE = [{"bytes": jpeg(), "path": None}] * 2
TWO = ["a dog", "a cat"]


@pytest.mark.parametrize(
    ("columns", "captions"),
    [
        ({"caption": [["a dog", None], ["a cat", None]]}, [["a dog"], ["a cat"]]),
        ({"caption": pa.array([None, None], pa.string()), "text": TWO}, [["a dog"], ["a cat"]]),
        ({"caption": pa.nulls(2), "text": TWO}, [["a dog"], ["a cat"]]),
        ({"caption": ["a cow", None], "text": TWO}, [["a cow"], ["a cat"]]),
        ({"caption": pa.array([TWO, TWO], pa.list_(pa.string(), 2))}, [TWO, TWO]),
        ({"caption": [json.dumps(TWO), json.dumps(TWO[:1])]}, [TWO, TWO[:1]]),
        ({"caption": [str(TWO), str(TWO)]}, [TWO, TWO]),
        ({"caption": ["[a dog]", "[a cat]"]}, [["[a dog]"], ["[a cat]"]]),
        ({"caption": ["[1, 2]", "[3]"]}, [["[1, 2]"], ["[3]"]]),
        ({"caption": ["['a dog' 'a cat']", "['a\\n b'\n 'c']"]}, [TWO, ["a b", "c"]]),
        ({"caption": [None, None], "text": [json.dumps(TWO)] * 2}, [TWO, TWO]),
    ],
)
def test_captions_in_parquet(tmp_path, columns, captions):
    uri = write_parquet(tmp_path / "0.parquet", {"image": IMAGE, **columns})
    assert [row.captions for row in read(Data(uri=uri))] == captions


def test_the_text_of_a_list_is_never_run():
    assert listed_texts("[__import__('os').getcwd()]") is None
    assert listed_texts("[" * 100_000) is None
    assert listed_texts("['a', None]") == ["a", None]


def test_images_that_are_only_paths_are_told_before_the_run(tmp_path):
    uri = write_parquet(
        tmp_path / "0.parquet", {"image": [{"bytes": None, "path": "train/0.jpg"}], "text": ["a dog"]}
    )
    with pytest.raises(UserError, match=r"holds no image, but paths, e.g. train/0.jpg: embed the images"):
        list_shards(Data(uri=uri))


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"caption": pa.array([None, None], pa.string())}, "none of the first 2 rows .*: missing caption"),
        ({"caption": [" ", ""]}, "none of the first 2 rows .*: blank caption"),
        (
            {"caption": TWO, "split": ["train", "test"]},
            "rows of several splits in the column .split.: test, train",
        ),
    ],
)
def test_parquet_that_cannot_be_right_is_told_before_the_run(tmp_path, columns, complaint):
    uri = write_parquet(tmp_path / "0.parquet", {"image": IMAGE, **columns})
    with pytest.raises(UserError, match=complaint):
        list_shards(Data(uri=uri))


def test_a_split_of_parquet_is_chosen_by_its_column(tmp_path):
    for number, splits in enumerate((["train"] * 40 + [None], ["train", "test"])):
        images = [jpeg(50 * number + n) for n in range(len(splits))]
        columns = {"image": images, "text": ["a dog"] * len(splits), "split": pa.array(splits, pa.string())}
        write_parquet(tmp_path / f"{number}.parquet", columns)
    with pytest.raises(UserError, match=r"several splits in the column 'split': test, train; name one"):
        list_shards(Data(uri=str(tmp_path)))
    assert [row.image for row in read(Data(uri=str(tmp_path), split="test"))] == [jpeg(51)]
    assert len(read(Data(uri=f"{tmp_path}/*.parquet", split="train"))) == 41
    assert len(read(Data(uri=str(tmp_path), split="all"))) == 43


def test_a_class_that_folders_name_by_a_text_is_told(tmp_path):
    (tmp_path / "label=cat").mkdir()
    write_parquet(tmp_path / "label=cat" / "0.parquet", {"image": [jpeg()], "text": ["a dog"]})
    with pytest.raises(UserError, match=r"data.label_column='label' is the text 'cat' in the folders"):
        list_shards(Data(uri=str(tmp_path)))
    assert [row.label for row in read(Data(uri=str(tmp_path), label_column=""))] == [None]


def test_a_list_that_is_empty_says_nothing(tmp_path):
    uri = write_parquet(tmp_path / "0.parquet", {"image": IMAGE, "caption": ["[]", str(TWO)]})
    assert [(row.captions, row.reject) for row in read(Data(uri=uri))] == [
        ([], "missing caption"),
        (TWO, None),
    ]


def test_minus_one_is_no_label(tmp_path):
    for name, label in (("train", [0, 1]), ("test", [-1, -1]), ("mixed", [1, -1])):
        write_parquet(tmp_path / f"{name}.parquet", {"image": [jpeg(7), jpeg(8)], "label": label})
    data = Data(uri=f"{tmp_path}/train.parquet", needs_captions=False)
    test = Evaluation(val=None, test=f"{tmp_path}/test.parquet")  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"^evaluation.test: none of the first 2 rows .*; -1 stands for no label"
    ):
        check_data(data, test, labelled=True)
    rows = read(replace(data, uri=f"{tmp_path}/mixed.parquet"))
    assert [(row.label, row.reject) for row in rows] == [(1, None), (None, "neither label nor caption")]


# ---- annotation files


def test_images_of_one_name_and_two_suffixes_are_two(tmp_path):
    write_images(tmp_path, "1.jpg", "1.png")
    assert [row.image for row in read(Data(uri=write_json(tmp_path / "c.json", coco("1.jpg", "1.png"))))] == [
        jpeg(0),
        jpeg(1),
    ]


def test_absolute_paths_are_read_inside_the_image_folder_alone(tmp_path):
    write_images(tmp_path / "images", "1.jpg")
    uri = write_json(tmp_path / "c.json", coco(f"{tmp_path}/images/1.jpg"))
    assert len(captions_of(Data(uri=uri, image_root=str(tmp_path / "images")))) == 1
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"absolute.*set data.image_root to a folder above them"):
        list_shards(Data(uri=uri, image_root=str(tmp_path / "other")))


def test_ids_of_another_type_are_told(tmp_path):
    write_images(tmp_path, "1.jpg")
    document = coco("1.jpg")
    document["annotations"][0]["image_id"] = "0"
    with pytest.raises(UserError, match=r"annotations name the image '0', but images have the id 0"):
        list_shards(Data(uri=write_json(tmp_path / "c.json", document)))


def test_lists_of_images_with_captions_are_read(tmp_path):
    """As BLIP and others ship Flickr30K: one row a caption for training, all captions of an image for testing."""
    write_images(tmp_path, "a.jpg", "b.jpg")
    train = [
        {"image": "a.jpg", "caption": "one"},
        {"image": "b.jpg", "caption": "x"},
        {"image": "a.jpg", "caption": "two"},
    ]
    test = [{"image": "a.jpg", "caption": ["one", "two"]}, {"image": "b.jpg", "caption": ["x"]}]
    for rows in (train, test):
        assert captions_of(Data(uri=write_json(tmp_path / "c.json", rows))) == {
            "a": ["one", "two"],
            "b": ["x"],
        }


def test_a_table_as_open_clip_takes_it_is_read(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "c.tsv").write_text("filepath\ttitle\na.jpg\tone, two\nb.jpg\tx\n")
    data = Data(uri=str(tmp_path / "c.tsv"), caption_columns=("title",))
    assert captions_of(data) == {"a": ["one, two"], "b": ["x"]}
    with pytest.raises(
        UserError, match=r"captions .*; name it as data.caption_columns: found filepath, title"
    ):
        list_shards(Data(uri=data.uri))
    with pytest.raises(UserError, match=r"the path of an image; name it as data.image_column"):
        list_shards(replace(data, image_column="img"))


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("c.csv", "image,caption\na.jpg,a dog, running\n", r"line 2 of c\.csv cannot be read .* more fields"),
        ("c.csv", 'image,caption\na.jpg,"hello\nb.jpg,a dog"\n', "a quotation mark that is never closed"),
        ("c.csv", "image,caption\nhttp://x/a.jpg,a dog\n", "all 1 rows .* are refused: unsafe image path"),
        ("c.json", '[{"image": "../a.jpg", "caption": "x"}]', "all 1 rows .* are refused: unsafe image path"),
        (
            "c.jsonl",
            '{"image": "a.jpg", "text": {"en": "x"}}',
            "none of the first 1 images .* caption is not text",
        ),
        ("c.jsonl", '{"image": "a.jpg", "text": "x", "label": "cat"}', "label is not an integer"),
        ("c.csv", "image,caption,split\na.jpg,x,train\nb.jpg,y,test\n", r"several splits: test, train"),
    ],
)
def test_tables_that_cannot_be_right_are_one_sentence(tmp_path, name, text, complaint):
    write_images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=complaint):
        list_shards(Data(uri=str(tmp_path / name)))


def test_tables_as_people_have_them(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    splits = tmp_path / "splits.csv"
    splits.write_text("image,caption,split\na.jpg,x,train\nb.jpg,y,test\n")
    assert captions_of(Data(uri=str(splits), split="test")) == {"b": ["y"]}
    piped = tmp_path / "results.csv"
    piped.write_text("image_name| comment_number| comment\na.jpg| 0| a dog, running\na.jpg| 1| a pup\n")
    said = captions_of(Data(uri=str(piped), caption_columns=("comment",)))
    assert said == {"a": ["a dog, running", "a pup"]}
    listed = tmp_path / "captions.txt"
    listed.write_text('image,caption\na.jpg,"[""x"", ""y""]"\nb.jpg,"[]"\n')
    rows = read(Data(uri=str(listed), image_root=str(tmp_path)))
    assert [(row.captions, row.reject) for row in rows] == [(["x", "y"], None), ([], "missing caption")]
    quoted = tmp_path / "quoted.tsv"
    quoted.write_text('filepath\ttext\na.jpg\t"hello\nb.jpg\tsize 12"\n')
    assert captions_of(Data(uri=str(quoted))) == {"a": ['"hello'], "b": ['size 12"']}
    token = tmp_path / "Flickr8k.token"
    token.write_text("a.jpg#0\tA dog runs .\na.jpg#1\tA pup .\na.jpg#2\tA pup .\nb.jpg#0\tA cat .\n")
    assert captions_of(Data(uri=str(token))) == {"a": ["A dog runs .", "A pup ."], "b": ["A cat ."]}
    lines = tmp_path / "lines.json"
    lines.write_text('{"image": "a.jpg", "text": "x"}\n{"image": "b.jpg", "text": "y"}\n')
    assert captions_of(Data(uri=str(lines))) == {"a": ["x"], "b": ["y"]}
    labels = [{"image": "a.jpg", "text": "x", "label": 1}, {"image": "a.jpg", "text": "y", "label": 2}]
    rows = read(Data(uri=write_json(tmp_path / "l.json", labels)))
    assert [(row.label, row.reject) for row in rows] == [(1, None), (None, "same image with another label")]


# ---- training and test data


def test_a_file_is_not_tested_on_that_is_trained_on(tmp_path):
    for n in range(3):
        write_tar(tmp_path / f"{n}.tar", pair("x", level=n))
    data = Data(uri=f"{tmp_path}/{{0..1}}.tar")
    with pytest.raises(
        UserError, match=r"^evaluation.test: 1 of its 1 files are among those of data.uri, .*/1\.tar"
    ):
        check_data(data, Evaluation(val=f"{tmp_path}/2.tar", test=f"{tmp_path}/1.tar"))
    one = f"{tmp_path}/1.tar"
    found = check_data(replace(data, uri=f"{tmp_path}/0.tar"), Evaluation(val=one, test=one))
    assert found["evaluation.test"][1].startswith("1 files are those of evaluation.val")


def test_a_karpathy_file_wants_its_split_named(tmp_path):
    images = [
        {"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": split}]}
        for split in ("train", "test")
    ]
    write_images(tmp_path, "train.jpg", "test.jpg")
    data = Data(uri=write_json(tmp_path / "dataset.json", {"images": images}))
    test = Evaluation(val=None, test=data.uri, test_split="test")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"holds several splits: test, train; .* data.split=train"):
        check_data(data, test)
    with pytest.raises(UserError, match=r"evaluation.test: 1 of its 1 files are among those of data.uri"):
        check_data(replace(data, split="all"), test)
    assert check_data(replace(data, split="train"), test)["data"] == ["Karpathy JSON: 1 image, 1 caption"]


def test_scenes_of_one_seed_are_not_both_trained_and_tested_on():
    with pytest.raises(UserError, match=r"the scenes of seed 1"):
        check_data(
            Data(uri="shapes:9?seed=1"), Evaluation(val="shapes:9?seed=2", test="shapes:5?wrong=0&seed=1")
        )
