"""Settings of a source."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from mmdd_ray.config.fields import Count, Essential

SOURCES = "::"  # between sources, as open_clip has it
SCENES = "shapes:"  # begins the URI of procedural scenes
SOURCE_SETTINGS = ("data.uri", "evaluation.val", "evaluation.test", "evaluation.zero_shot")
"""Settings that take several sources."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A source of image-caption pairs."""

    uri: Essential[str]
    """WebDataset tars (brace ranges and globs), Parquet, a folder of images, captions in JSON, JSON lines or CSV, or
    shapes:ROWS?seed=S (docs/world.md); docs/data.md shows each layout. Several sources have "::" between them, or are
    arguments of their own. Local paths, s3://, gs:// and hf:// work alike."""
    image_root: Essential[str | None] = None
    """Folder of the image files that a JSON, JSON lines or CSV file names. Default: the folder of that file."""
    split: Essential[str | None] = None
    """Split to keep, where a source holds several: of Karpathy JSON ("train" also takes "restval"), or of files and
    folders that "train", "validation" or "test" names; "all" keeps everything. Where there are several, it must be
    given. A slice in percent, "train[20%:]" or "[:10%]", keeps a share of the images, by their content."""
    image_column: str = "image"
    """Parquet column with the encoded image: binary, or Hugging Face's {bytes, path} struct; if there is no "image",
    img2dataset's "jpg", "png" or "webp". Column of CSV and JSON lines with the path of the image; if there is no
    "image", "file_name" and the like. In tars a member that another name than "image" asks for, e.g. "input.jpg"."""
    caption_columns: Essential[tuple[str, ...]] = ("captions", "caption", "text")
    """Columns or JSON keys that may hold captions, a string or a list. The first that is not blank is read; beside
    images and in tars the .txt member, if none is there."""
    needs_captions: bool = True
    """Whether images without a caption are refused. VLCP can do with their labels, and names for these."""
    key_column: str = "key"
    """Parquet column with names for rows. If there is no "key", they are made of file name and row number; a column
    asked for by another name must be there."""
    label_column: str = "label"
    """Parquet column or JSON key with the integer class; in tars, where no JSON has it, the .cls member. If there is no
    "label", there are no classes; a Parquet column asked for by another name must be there."""
    limit: Essential[Count | None] = None
    """Read at most this many pairs (whole shards first, then rows). Default: all."""
    rows_per_shard: Count = 1000
    """Shard size of sources that have no shards of their own (JSON, image folder, shapes)."""
    max_image_pixels: Count = 50_000_000
    """Images that declare more pixels than this are rejected before they are decoded."""
    max_member_mib: Count = 64
    """Tar members and image files larger than this are rejected unread; Parquet cells, which come with their
    batch of rows, once they are read."""
    max_caption_chars: Count = 10_000
    """Longer captions are rejected."""
    max_reject_ratio: Annotated[float, Ge(0), Le(1)] = 0.2
    """The run stops when more than this share of the rows had to be rejected, or of the files of a brace range are not
    there."""

    @property
    def names_image_column(self) -> bool:
        """Whether somebody asked for an image column by name."""
        return self.image_column != type(self).image_column
