"""How the tiny zoo of `mmdd_ray/zoo` was made: small real models, each trained on procedural scenes."""

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

QUALITY = "quality.json"
WORK = ".training"


def train_zoo(models: Sequence[str], out: Path, *, seed: int, threads: int) -> None:
    """Trains `models`, saves them below `out` and notes their held-out quality in its quality.json.

    A killed training goes on: its state, and the names of the models that are done, lie in the folder `.training` of
    `out` until all are. What another version of the recipe left there is not taken up.
    """
    import torch

    from mmdd_ray.pretrain import captioner, clip, diffusion, students

    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainers: dict[str, Callable[..., dict[str, float]]] = {
        "tiny-clip": partial(clip.train, scenes=80_000, naming_steps=1500, steps=1000),
        "tiny-sd": partial(
            diffusion.train,
            clip=out / "tiny-clip",
            scenes=80_000,
            vae_steps=(1300, 1300),
            unet_steps=(14_000, 18_000),
        ),
        "tiny-captioner": partial(captioner.train, scenes=80_000, naming_steps=2000, steps=3000),
        "tiny-nf": partial(students.train_image_encoder, scenes=40_000, steps=1500),
        "tiny-bert": partial(students.train_text_encoder, scenes=20_000, steps=600),
    }
    work = out / WORK / f"seed{seed}-{recipe()}"
    on = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {threads} threads"
    for model in models:
        finished = work / f"{model}.json"
        if not finished.exists():
            measured = trainers[model](out / model, seed=seed, device=device, work=work)
            noted = {name: round(value, 2) for name, value in measured.items()}
            print(model, noted, flush=True)
            work.mkdir(parents=True, exist_ok=True)
            finished.write_text(json.dumps(noted | {"device": on, "seed": seed}))
    quality = json.loads((out / QUALITY).read_text()) if (out / QUALITY).exists() else {}
    quality |= {model: json.loads((work / f"{model}.json").read_text()) for model in models}
    (out / QUALITY).write_text(json.dumps(quality, indent=2, sort_keys=True) + "\n")
    shutil.rmtree(out / WORK)


def recipe() -> str:
    """A hash of the code of the trainings and of the scenes, 12 hex digits."""
    here = Path(__file__).parent
    files = [*here.glob("*.py"), *(here.parent / "data" / name for name in ("shapes.py", "web_scenes.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:12]
