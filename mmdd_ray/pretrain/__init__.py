"""How the tiny zoo of `mmdd_ray/zoo` was made: small real models, each trained on the `shapes` dataset."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

QUALITY = "quality.json"


def train_zoo(models: Sequence[str], out: Path, *, seed: int, threads: int) -> None:
    """Trains `models`, saves them below `out` and notes their held-out quality in its quality.json."""
    import torch

    from mmdd_ray.pretrain import captioner, clip, diffusion, students

    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainers: dict[str, Callable[..., dict[str, float]]] = {
        "tiny-clip": partial(clip.train, scenes=60_000, steps=700),
        "tiny-sd": partial(diffusion.train, clip=out / "tiny-clip"),
        "tiny-captioner": partial(captioner.train, scenes=50_000, cycles=(1500, 2400)),
        "tiny-nf": partial(students.train_image_encoder, scenes=40_000, steps=1200),
        "tiny-bert": partial(students.train_text_encoder, scenes=20_000, steps=500),
    }
    for model in models:
        measured = trainers[model](out / model, seed=seed, device=device)
        print(model, measured, flush=True)
        noted = json.loads((out / QUALITY).read_text()) if (out / QUALITY).exists() else {}
        noted[model] = {name: round(value, 2) for name, value in measured.items()}
        (out / QUALITY).write_text(json.dumps(noted, indent=2, sort_keys=True) + "\n")
