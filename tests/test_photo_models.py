"""The models of the photo benchmarks: a few steps of each on a few photographs leave what the loaders load."""

import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mmdd_ray.models.captioners.captioner import load_captioner
from mmdd_ray.models.clip import load_clip
from mmdd_ray.models.generators.stable_diffusion import draw_images, load_pipeline

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import photo_models  # benchmarks are scripts, which lie beside each other


def some_photographs(real_data: Path, folder: Path) -> None:
    """The first rows of shards, enough for every class, under the names of whole sets."""
    for split, rows in (("train", 3000), ("val", 400)):
        name = f"tiny-imagenet32-{split}-000.parquet"
        pq.write_table(pq.read_table(real_data / "tiny-imagenet32" / name).slice(0, rows), folder / name)
        shard = f"flickr8k-{split}-000.tar"
        with tarfile.open(real_data / "flickr8k" / shard) as whole, tarfile.open(folder / shard, "w") as part:
            for member in whole.getmembers()[: rows // 5]:
                part.addfile(member, whole.extractfile(member))


@pytest.mark.real
@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("image_px", [32, 64])
def test_a_few_steps_of_each_leave_loadable_models(real_data: Path, tmp_path: Path, image_px: int) -> None:
    some_photographs(real_data, tmp_path)
    asked = photo_models.PhotoModels(
        tmp_path, tmp_path, tmp_path / "models",
        image_px=image_px, label_epochs=1, clip_steps=2, vae_steps=2, unet_steps=1, unet_batch=64, captioner_steps=1,
    )  # fmt: skip
    found = photo_models.pretrain(asked)
    assert list(found) == ["clip", "vae", "unet", "captioner"]
    assert all(np.isfinite(value) for figures in found.values() for value in figures.values())

    image = np.zeros((image_px, image_px, 3), np.uint8)
    clip = load_clip(f"local-dir:{asked.out}/clip")
    assert clip.image_px == image_px
    assert clip.encode_images(image[None]).shape == clip.encode_texts(["a photo of a tabby"]).shape
    (drawn,) = draw_images(
        load_pipeline(str(asked.out / "sd")),
        ["a dog"],
        [1],
        image_px=image_px,
        inference_steps=2,
        guidance=2.0,
    ).images_BHW3
    assert drawn.shape == (image_px, image_px, 3)
    captioner = load_captioner(str(asked.out / "captioner"), torch.device("cpu"))
    ((text,),) = captioner.write([Image.fromarray(image)], 1, instructions=(), max_new_tokens=4, seed=0)
    assert isinstance(text, str)

    before = {path: path.stat().st_mtime_ns for path in asked.out.rglob("*") if path.is_file()}
    assert photo_models.pretrain(asked) == found
    with pytest.raises(
        SystemExit, match=f"holds models of {image_px} px; choose another folder for those of 48"
    ):
        photo_models.pretrain(replace(asked, image_px=48))
    assert before == {path: path.stat().st_mtime_ns for path in asked.out.rglob("*") if path.is_file()}
