"""The feature stage at its steady pace, beside loops without Ray.

    python benchmarks/speed_features.py --data '../flickr8k/flickr8k-train-{000..005}.tar'
    python benchmarks/speed_features.py --size gpu     # ViT-B/32 and ViT-L/14 with random weights, no Ray

Every arm is kept to its cores (one, or two), whatever processes it starts, with one thread a process. Arms:

- stage, 1 core and 2 cores: the feature stage on a local Ray, with one encoder a core. Its pace is that between the
  first and the last chunk of pairs that it writes: the start of processes is not in it (speed_start.py has that).
- bare, 1 core and 2 cores: a loop in one process, or two that share the shards out: webdataset, Pillow, the same
  encoder on batches of the same size, and Parquet files of float16 features.
- one by one: open_clip's own preprocessing and model, an image and its captions at a time, on one core.

On cores that are two threads of one, even two processes that know nothing of each other are not twice as fast as one;
so the growth from one core to two is shown beside that of the bare loops.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import tyro
from braceexpand import braceexpand
from published_models import vit_b32, vit_l14
from speed import Ratio, Speed, record

from mmdd_ray.config import Data, Features, Run
from mmdd_ray.data.shapes_shards import write_shards
from mmdd_ray.storage.store import Store

ROWS = {"tiny": 1600, "cpu": 6000}
PER_SHARD = {"tiny": 400, "cpu": 500}
ALONE = {"tiny": 8, "cpu": 100}  # images of the arm that takes one at a time
GPU_BATCH, GPU_BATCHES = 512, 8


@dataclass(kw_only=True)
class FeaturesSpeed(Speed):
    """Times the feature stage."""

    data: str | None = None
    """WebDataset shards, as for data.uri; default: procedural scenes that are written first."""
    clip: str = "tiny-clip"
    """The encoder."""


# ---- arms: each gives images a second


def stage_pace(asked: FeaturesSpeed, uri: str, cores: int) -> float:
    """The feature stage, in a process of its own, as Ray is started for other cores every time."""
    with ProcessPoolExecutor(1, get_context("spawn"), _keep_to, (list(range(cores)),)) as process:
        return process.submit(_stage_pace, uri, asked.clip, cores).result()


def _stage_pace(uri: str, clip: str, cores: int) -> float:
    from mmdd_ray.engine.cluster import connected
    from mmdd_ray.engine.run_dir import RunDir
    from mmdd_ray.features.precompute import precompute
    from mmdd_ray.features.store import shard_files

    folder = tempfile.mkdtemp()
    try:
        # a CPU more than cores, which Ray Data keeps for reading: that shares the cores with the encoders
        run, data, features = (
            Run(dir=f"{folder}/run", num_cpus=cores + 1),
            Data(uri=uri),
            _features(clip, cores),
        )
        with RunDir.open(run.dir, "speed", "speed", data) as opened, connected(run, opened.store):
            stage = opened.stage("features", lambda stage: precompute(stage, opened.store, data, features))
        files = sorted(Path(stage.store.path(name)) for name in shard_files(stage.store))
        written = sorted((file.stat().st_mtime, _rows(file)) for file in files)
        # from the time that every encoder has written a chunk, and one of them another
        begun, later = written[2 * cores - 1][0], written[2 * cores :]
        return sum(count for _, count in later) / (written[-1][0] - begun)
    finally:
        shutil.rmtree(folder)


def _features(clip: str, cores: int) -> Features:
    return Features(clip=clip, min_actors=cores, max_actors=cores)


def _rows(file: Path) -> int:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file).metadata.num_rows


def bare_pace(asked: FeaturesSpeed, uri: str, cores: int) -> float:
    """The loop, in as many processes as cores, which begin together."""
    with ProcessPoolExecutor(cores, get_context("spawn"), _keep_to, (list(range(cores)),)) as processes:
        list(processes.map(_imported, range(cores)))
        found = list(processes.map(partial(_bare, uri, asked.clip, cores), range(cores)))
    begun, ended = max(begin for begin, _ in found), max(own[-1][0] for _, own in found)
    return sum(rows for _, own in found for at, rows in own if at > begun) / (ended - begun)


def _imported(_: int) -> None:
    import open_clip
    import torch
    import webdataset

    assert open_clip
    assert webdataset
    torch.set_num_threads(1)


def _bare(uri: str, clip_name: str, cores: int, part: int) -> tuple[float, list[tuple[float, int]]]:
    """When it had worked off its first batch, and when each of the others, and how many images that had."""
    import pyarrow.parquet as pq
    import torch

    from mmdd_ray.models.clip import load_clip

    torch.set_num_threads(1)
    clip, features = load_clip(clip_name), Features()
    samples = _samples(_urls(uri)[part::cores], features.image_px)
    written: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(10**9):
            batch = list(islice(samples, features.chunk_pairs))
            if not batch:
                return written[0][0], written[1:]
            image = clip.encode_images(np.stack([image for image, _ in batch])).numpy()
            text = clip.encode_texts([caption for _, own in batch for caption in own]).numpy()
            ends = np.cumsum([0, *(len(own) for _, own in batch)])
            texts = [text[a:b].astype(np.float16).tobytes() for a, b in pairwise(ends)]
            table = {"image": [row.tobytes() for row in image.astype(np.float16)], "text": texts}
            pq.write_table(pa.table(table), Path(folder, f"{number}.parquet"))
            written.append((perf_counter(), len(batch)))
    raise AssertionError("no end")


def _samples(urls: list[str], image_px: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    import webdataset
    from PIL import Image, ImageOps

    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode("pil"):
        image = next(sample[kind] for kind in ("jpg", "png") if kind in sample).convert("RGB")
        pixels = np.asarray(ImageOps.fit(image, (image_px, image_px), Image.Resampling.BICUBIC))
        yield pixels, sample["json"]["captions"] if "json" in sample else [sample["txt"]]


def _urls(uri: str) -> list[str]:
    return [
        path for one in braceexpand(uri) for path in (sorted(map(str, Path(one).parent.glob(Path(one).name))))
    ]


def alone_pace(asked: FeaturesSpeed, uri: str) -> float:
    with ProcessPoolExecutor(1, get_context("spawn"), _keep_to, ([0],)) as process:
        return process.submit(_alone, uri, asked.clip, ALONE[asked.size]).result()


def _alone(uri: str, clip_name: str, images: int) -> float:
    import open_clip
    import torch
    from PIL import Image

    from mmdd_ray.models import zoo

    torch.set_num_threads(1)
    folder = f"local-dir:{zoo.FOLDER / clip_name}"
    model, _, preprocess = open_clip.create_model_and_transforms(folder)
    model.eval()
    tokenizer = open_clip.get_tokenizer(folder)
    samples = list(islice(_samples(_urls(uri), 256), images + 1))
    started = 0.0
    with torch.no_grad():
        for pixels, captions in samples:
            model.encode_image(preprocess(Image.fromarray(pixels))[None])
            model.encode_text(tokenizer(captions))
            started = started or perf_counter()
    return (len(samples) - 1) / (perf_counter() - started)


def _keep_to(cores: list[int]) -> None:
    psutil.Process().cpu_affinity(cores)


# ---- on a GPU


def on_gpu(asked: FeaturesSpeed) -> None:
    """Features of decoded images, without Ray, beside the floating-point operations at the peak of matrix products."""
    import torch
    from speed_synthesis import matmul_peak
    from torch.utils.flop_counter import FlopCounterMode

    from mmdd_ray.models.clip import load_clip

    ratios, paces = [], {}
    for name, source in (("ViT-B/32", vit_b32()), ("ViT-L/14", vit_l14())):
        clip = load_clip(source, "cuda")
        images = np.random.default_rng(0).integers(
            0, 255, (GPU_BATCH, clip.image_px, clip.image_px, 3), np.uint8
        )
        torch.backends.mha.set_fastpath_enabled(False)  # whose operations the counter does not see
        with FlopCounterMode(display=False) as counter:
            clip.encode_images(images)
        torch.backends.mha.set_fastpath_enabled(True)
        floor = counter.get_total_flops() / matmul_peak(torch.float16)
        seconds = []
        for _ in range(asked.repetitions):
            torch.cuda.synchronize()
            started = perf_counter()
            for _ in range(GPU_BATCHES):
                clip.encode_images(images)
            torch.cuda.synchronize()
            seconds.append((perf_counter() - started) / GPU_BATCHES)
        ratios.append(
            Ratio(f"features: {name}, share of the matmul limit", tuple(floor / s for s in seconds), 0.5)
        )
        paces[name] = [GPU_BATCH / s for s in seconds]
    record("features", asked, ratios, images_a_second=paces)


def main() -> None:
    asked = tyro.cli(FeaturesSpeed)
    if asked.size == "gpu":
        on_gpu(asked)
        return
    with tempfile.TemporaryDirectory() as scratch:
        uri = asked.data
        if uri is None:
            write_shards(
                Store(scratch),
                ROWS[asked.size],
                seed=1,
                layout="webdataset",
                rows_per_shard=PER_SHARD[asked.size],
            )
            uri = f"{scratch}/*.tar"
        arms: dict[str, Callable[[], float]] = {
            "stage, 1 core": lambda: stage_pace(asked, uri, 1),
            "bare, 1 core": lambda: bare_pace(asked, uri, 1),
            "stage, 2 cores": lambda: stage_pace(asked, uri, 2),
            "bare, 2 cores": lambda: bare_pace(asked, uri, 2),
            "one by one": lambda: alone_pace(asked, uri),
        }
        paces: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(asked.repetitions):
            for name, arm in arms.items():
                paces[name].append(arm())

    def over(name: str, ours: str, other: str, target: float | None = None, scale: float = 1) -> Ratio:
        pairs = zip(paces[ours], paces[other], strict=True)
        return Ratio(name, tuple(scale * own / theirs for own, theirs in pairs), target)

    grown = over("features: two cores over twice one", "stage, 2 cores", "stage, 1 core", 0.9, 0.5)
    bare_grown = over("features: the same of the bare loops", "bare, 2 cores", "bare, 1 core", None, 0.5)
    ratios = [
        over("features: over the bare loop, one core", "stage, 1 core", "bare, 1 core", 0.95),
        over("features: over the bare loop, two cores", "stage, 2 cores", "bare, 2 cores", 0.95),
        grown,
        bare_grown,
        over("features: over one image at a time", "stage, 1 core", "one by one"),
    ]
    data = asked.data.rpartition("/")[2] if asked.data else "shapes"  # without the folders of a machine
    facts: dict[str, Any] = {"data": data, "clip": asked.clip, "images_a_second": paces}
    record("features", asked, ratios, **facts)


if __name__ == "__main__":
    main()
