"""Fine-tuning: its losses, steps, checkpoints and workers."""
# over 400 lines: its tests share one small training

import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmdd_ray.config import Data
from mmdd_ray.data import shapes
from mmdd_ray.data.shards import list_shards
from mmdd_ray.data.sources import training_pairs
from mmdd_ray.diffusion.finetune import finetune
from mmdd_ray.diffusion.training import Training
from mmdd_ray.engine.data_position import Batch
from mmdd_ray.engine.ray_train import pair_batches
from mmdd_ray.engine.run_dir import LOSSES, StageDir
from mmdd_ray.methods.edge.losses import contrastive_loss, diversity_loss
from mmdd_ray.methods.edge.objective import EdgeLoss, EdgeObjective
from mmdd_ray.methods.edge.settings import EdgeFinetune
from mmdd_ray.models import zoo
from mmdd_ray.storage.store import Store

# diffusers and open_clip are imported where they are used: the processes of a test import this file again.
SETTINGS = EdgeFinetune(steps=6, batch_pairs=8, ema_decay=0.9)


def pairs(count: int, *, seed: int = 5) -> Batch:
    drawn = [shapes.scene(index, seed=seed) for index in range(count)]
    images_u8 = np.stack([np.asarray(scene.render(32)) for scene in drawn])
    return images_u8, [scene.captions()[0] for scene in drawn]


def cut(images_u8: np.ndarray, captions: list[str], batch_pairs: int) -> Iterable[Batch]:
    starts = range(0, len(captions) - batch_pairs + 1, batch_pairs)
    return [(images_u8[i : i + batch_pairs], captions[i : i + batch_pairs]) for i in starts]


def tiny_sd() -> Any:
    from mmdd_ray.models.generators.generator import load_generator

    return load_generator("tiny-sd")


def edge_training(settings: EdgeFinetune, pipeline: Any = None) -> Training:
    torch.manual_seed(0)
    pipeline = pipeline or tiny_sd()
    pipeline.prepare_training(settings.parameters, rank=settings.lora_rank, compiled=settings.compile)
    return Training(EdgeObjective(settings, "tiny-clip").build(pipeline), settings, seed=3)


# EDGE's objective


class Oracle(nn.Module):
    """A U-Net that knows the clean latents, and so finds the noise in what it is shown."""

    def __init__(self, clean_BCHW: Tensor, alpha_bar_T: Tensor) -> None:
        super().__init__()
        self.clean_BCHW, self.alpha_bar_T = clean_BCHW, alpha_bar_T

    def forward(self, noisy_BCHW: Tensor, steps_B: Tensor, _: Tensor) -> SimpleNamespace:
        alpha_bar = self.alpha_bar_T[steps_B].view(-1, 1, 1, 1)
        return SimpleNamespace(
            sample=(noisy_BCHW - alpha_bar.sqrt() * self.clean_BCHW) / (1 - alpha_bar).sqrt()
        )


def test_with_a_perfect_unet_the_losses_are_those_of_the_images_the_vae_draws():
    """Everything around the U-Net, against the preprocessing of diffusers and open_clip.

    Clean latents into the U-Net, images in [0, 1] into the VAE, a forgotten scaling factor or other
    statistics than CLIP's would each change the losses.
    """
    images_u8, captions = pairs(8)
    import open_clip

    generator = tiny_sd()
    pipeline = generator.pipeline
    loss = EdgeLoss(generator, replace(SETTINGS, max_timestep_fraction=1.0), "tiny-clip")
    generator.unet = Oracle(generator.encode(images_u8), generator.alpha_bar_T)
    with torch.no_grad():
        terms = loss(images_u8, captions, torch.Generator().manual_seed(0))
        signed = pipeline.image_processor.preprocess(images_u8.astype(np.float32) / 255)
        drawn = pipeline.vae.decode(pipeline.vae.encode(signed).latent_dist.mode()).sample
        folder = f"local-dir:{zoo.FOLDER / 'tiny-clip'}"
        clip, _, preprocess = open_clip.create_model_and_transforms(folder)
        seen = torch.stack([preprocess(image) for image in pipeline.image_processor.postprocess(drawn)])
        image = clip.eval().encode_image(seen)
        text = clip.encode_text(open_clip.get_tokenizer(folder)(captions))
    assert terms["contrastive"].item() == pytest.approx(contrastive_loss(image, text).item(), abs=0.01)
    assert terms["diversity"].item() == pytest.approx(diversity_loss(image, text).item(), abs=0.002)
    assert terms["noise"].item() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("space", ["clip", "latent"])
def test_the_losses_look_at_images_and_captions_and_reach_the_unet(space):
    images_u8, captions = pairs(6)
    training = edge_training(replace(SETTINGS, space=space))

    def total(images: np.ndarray, texts: list[str]) -> Tensor:
        return training.loss(images, texts, torch.Generator().manual_seed(0))["total"]

    base = total(images_u8, captions)
    assert total(images_u8, captions).item() == base.item()
    assert total(images_u8[::-1].copy(), captions).item() != base.item()
    base.backward()
    reached = {name for name, p in training.parameters.items() if p.grad is not None and p.grad.any()}
    heads = {name for name in training.parameters if "_head." in name}
    assert len(heads) == (4 if space == "latent" else 0)
    assert reached >= heads
    assert len(reached) > 0.95 * len(training.parameters)


def test_image_sizes_that_the_vae_cannot_halve_are_one_sentence():
    with pytest.raises(ValueError, match=r"finetune.image_px=30 is no multiple of 4"):
        EdgeLoss(tiny_sd(), replace(SETTINGS, image_px=30), "tiny-clip")


@pytest.mark.parametrize("space", ["clip", "latent"])
def test_a_few_steps_lower_the_losses_of_other_pairs(space):
    """From a U-Net with 60 % noise on its weights, as there is little to gain on the pairs the zoo knows."""
    settings = replace(
        SETTINGS, steps=24, batch_pairs=16, optimizer="adamw", learning_rate=1e-2, ema_decay=0, space=space
    )
    pipeline, generator = tiny_sd(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in pipeline.unet.parameters():
            weight *= 1 + 0.6 * torch.randn(weight.shape, generator=generator)
    training, (images_u8, captions) = edge_training(settings, pipeline), pairs(32, seed=6)

    @torch.no_grad()
    def held_out() -> Tensor:
        found = training.loss(images_u8, captions, torch.Generator().manual_seed(9))
        return torch.stack([found["contrastive"], found["diversity"]])

    before = held_out()
    for _ in training.run(lambda epoch: cut(*pairs(96, seed=7), 16)):
        pass
    assert (held_out() < 0.9 * before).all()


# The steps of a worker


class Regression(nn.Module):
    """Guesses the length of the caption from the mean colour; as quick as a loss can be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.guess = nn.Linear(3, 1)

    def forward(self, images_u8: np.ndarray, captions: list[str], _: torch.Generator) -> dict[str, Tensor]:
        colour_B3 = torch.as_tensor(images_u8).float().mean(dim=(1, 2)) / 255
        length_B = torch.tensor([len(caption) / 100 for caption in captions])
        return {"total": (self.guess(colour_B3)[:, 0] - length_B).square().mean()}


def weights_after(training: Training, batches: Iterable[Batch]) -> Tensor:
    for _ in training.run(lambda epoch: batches):
        pass
    return torch.cat([p.detach().flatten() for p in training.parameters.values()])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_accumulated_batches_are_one_of_twice_the_size(optimizer):
    settings = replace(SETTINGS, optimizer=optimizer, learning_rate=0.1)
    large = Training(Regression(), settings, seed=0)
    small = Training(Regression(), replace(settings, batch_pairs=4, accumulate=2), seed=0)
    data = pairs(24)
    torch.testing.assert_close(weights_after(small, cut(*data, 4)), weights_after(large, cut(*data, 8)))
    assert small.losses[-1]["total"] == pytest.approx(large.losses[-1]["total"], rel=1e-5)


def test_gradients_are_clipped_to_their_norm_and_averaged_weights_lag_behind():
    settings = replace(SETTINGS, steps=1, momentum=0, learning_rate=1.0, max_grad_norm=0.01, ema_decay=0.9)
    training = Training(Regression(), settings, seed=0)
    start = torch.cat([p.detach().flatten() for p in training.parameters.values()])
    first = weights_after(training, cut(*pairs(8), 8))
    assert (first - start).norm().item() == pytest.approx(0.01, rel=1e-4)
    training.settings = replace(settings, steps=2)
    second = weights_after(training, cut(*pairs(8), 8))
    training.finish()
    averaged = torch.cat([p.detach().flatten() for p in training.parameters.values()])
    # diffusers warms up: the decay is 0 at the first step and (1 + 1) / (10 + 1) at the second
    torch.testing.assert_close(averaged, first * 2 / 11 + second * 9 / 11)


def test_a_diverging_training_stops_with_one_sentence():
    training = Training(Regression(), replace(SETTINGS, learning_rate=1e30, max_grad_norm=0), seed=0)
    with pytest.raises(ValueError, match=r"step \d with finetune.learning_rate=1e\+30; lower"):
        weights_after(training, cut(*pairs(8), 8))


def test_an_epoch_without_a_batch_stops_with_one_sentence():
    with pytest.raises(ValueError, match=r"fewer usable pairs than finetune.batch_pairs=8"):
        weights_after(Training(Regression(), SETTINGS, seed=0), cut(*pairs(7), 8))


@pytest.mark.parametrize(("optimizer", "accumulate"), [("sgd", 1), ("adamw", 2)])
def test_a_killed_training_ends_with_the_same_weights_bit_for_bit(tmp_path, optimizer, accumulate):
    settings = replace(SETTINGS, optimizer=optimizer, accumulate=accumulate, space="latent")
    data = pairs(40)

    def open_epoch(epoch: int) -> Iterator[Batch]:
        """Five batches, others in each epoch; with two a step, step 3 takes from both epochs."""
        return iter(cut(np.roll(data[0], epoch, axis=0), data[1][-epoch:] + data[1][:-epoch], 8))

    unbroken = edge_training(settings)
    for _ in unbroken.run(open_epoch):
        pass

    killed = edge_training(settings)
    for record in killed.run(open_epoch):
        if record["step"] == 3:
            torch.save(killed.state(), tmp_path / "state.pt")
        if record["step"] == 4:
            break  # and what came after the checkpoint is lost
    resumed = edge_training(settings)
    resumed.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [record["step"] for record in resumed.run(open_epoch)] == [4, 5, 6]

    assert [record["step"] for record in resumed.losses] == [1, 2, 3, 4, 5, 6]
    for _ in range(2):  # the last weights, then the averaged ones
        for name, parameter in unbroken.parameters.items():
            assert torch.equal(parameter, resumed.parameters[name]), name
        unbroken.finish()
        resumed.finish()


def test_what_is_encoded_once_gives_the_losses_of_encoding_every_time(monkeypatch):
    from mmdd_ray.models.clip import Clip
    from mmdd_ray.models.generators.stable_diffusion import StableDiffusion

    encoded: list[str] = []

    def count(kind: type, name: str) -> None:
        encode = getattr(kind, name)

        def counted(self: Any, batch: Any, **options: Any) -> Any:
            encoded.append(f"{name} {len(batch)}")
            return encode(self, batch, **options)

        monkeypatch.setattr(kind, name, counted)

    data, losses = pairs(24), {}
    for kind, name in (
        (StableDiffusion, "encode"),
        (StableDiffusion, "_encode_texts"),
        (Clip, "encode_texts"),
    ):
        count(kind, name)
    for cache_mib in (0, 64):
        training = edge_training(replace(SETTINGS, cache_mib=cache_mib))
        encoded.clear()
        # three batches an epoch, of other rows in the second one
        list(
            training.run(
                lambda epoch: cut(np.roll(data[0], epoch, axis=0), data[1][-epoch:] + data[1][:-epoch], 8)
            )
        )
        losses[cache_mib] = [record["total"] for record in training.losses]
        batches = 6 if cache_mib == 0 else 3
        assert encoded == ["encode 8", "_encode_texts 8", "encode_texts 8"] * batches
    assert losses[0] == pytest.approx(losses[64], abs=1e-6)


def test_a_compiled_training_takes_the_same_steps(compiled):
    one, other = (edge_training(replace(SETTINGS, compile=wanted)) for wanted in (False, True))
    for training in (one, other):
        list(training.run(lambda epoch: cut(*pairs(24), 8)))
    assert compiled
    assert [r["total"] for r in other.losses] == pytest.approx([r["total"] for r in one.losses], rel=1e-4)


TWO_STEPS = replace(SETTINGS, steps=2, accumulate=2, learning_rate=0.1, ema_decay=0)


def step_one_rank(rank: int, world_size: int, folder: Path, data: Batch) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world_size)
    training = Training(DistributedDataParallel(Regression()), TWO_STEPS, seed=0, rank=rank)
    share = [(images[rank::2], captions[rank::2]) for images, captions in cut(*data, 8)]
    torch.save((weights_after(training, share), training.losses[-1]["total"]), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_take_the_steps_of_one(tmp_path, two_ranks):
    data = pairs(32)
    two_ranks(step_one_rank, args=(2, tmp_path, data))
    one = Training(Regression(), TWO_STEPS, seed=0)
    expected = weights_after(one, cut(*data, 8))
    for rank in range(2):
        weights, total = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(weights, expected)
        assert total == pytest.approx(one.losses[-1]["total"], rel=1e-5)


class FakeShard:
    """A worker's share of the dataset, of six pairs with three captions each."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def iter_batches(self, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        self.asked = options
        captions = np.array([[f"{row}{letter}" for letter in "abc"] for row in range(6)])
        yield {"image": np.zeros((6, 2, 2, 3), np.uint8), "captions": captions, "first": np.arange(6)}


def test_each_epoch_is_shuffled_anew_and_shows_the_next_caption(monkeypatch):
    shard = FakeShard()
    monkeypatch.setattr("ray.train.get_dataset_shard", lambda name: shard)
    shown, shuffles = [], []
    for epoch in (0, 1, 2, 1):
        ((_, captions),) = pair_batches(6, seed=0, epoch=epoch)
        shown.append(captions)
        shuffles.append(shard.asked["local_shuffle_seed"])
    assert shown[0] == ["0a", "1b", "2c", "3a", "4b", "5c"]
    assert shown[1] == ["0b", "1c", "2a", "3b", "4c", "5a"]
    assert shown[1] == shown[3]
    assert shuffles[1] == shuffles[3]
    assert len(set(shuffles)) == 3
    assert shard.asked["batch_size"] == 6
    assert shard.asked["drop_last"]


def test_noise_is_another_for_every_step_batch_rank_and_seed():
    def first_noise(*, seed: int, rank: int) -> list[float]:
        class Listener(Regression):
            def forward(self, images: np.ndarray, captions: list[str], noise: torch.Generator) -> Any:
                heard.append(torch.rand((), generator=noise).item())
                return super().forward(images, captions, noise)

        heard: list[float] = []
        settings = replace(SETTINGS, steps=3, accumulate=2)
        weights_after(Training(Listener(), settings, seed=seed, rank=rank), cut(*pairs(8), 8))
        return heard

    draws = [*first_noise(seed=0, rank=0), *first_noise(seed=0, rank=1), *first_noise(seed=1, rank=0)]
    assert len(set(draws)) == 18
    assert first_noise(seed=0, rank=1) == draws[6:12]


# The stage


def stage_in(folder: Path) -> StageDir:
    return StageDir("finetune", Store(str(folder)), "finetune")


@pytest.mark.ray
def test_training_pairs_leaves_out_what_is_damaged_or_excluded(ray_cluster, tmp_path):
    def png(index: int) -> bytes:
        file = io.BytesIO()
        shapes.scene(index, seed=1).render(48).save(file, "PNG")
        return file.getvalue()

    images = [png(0), b"no image", png(2), png(3), png(0)[:200]]
    captions = [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
    table = pa.table({"key": list("vwxyz"), "image": images, "captions": captions})
    pq.write_table(table, tmp_path / "shard.parquet")
    data = Data(uri=str(tmp_path / "shard.parquet"))
    (everything,) = training_pairs(data, image_px=32, seed=0).iter_batches(batch_size=None)
    assert [list(c) for c in everything["captions"]] == [["a", "b"], ["d"], ["e"]]
    assert everything["image"].shape == (3, 32, 32, 3)
    (shard,) = list_shards(data)
    left = training_pairs(data, image_px=32, seed=0, excluded={(shard.name, 2)}).take_all()
    assert [list(row["captions"]) for row in left] == [["a", "b"], ["e"]]


def saved_unet(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.ray
def test_no_steps_leave_the_generator_as_it_is(ray_cluster, tmp_path):
    settings = replace(SETTINGS, steps=0)
    result = finetune(None, settings, EdgeObjective(settings, "tiny-clip"), seed=0, stage=stage_in(tmp_path))  # type: ignore[arg-type]
    assert result.extra == {"steps": 0}
    saved, original = saved_unet(tmp_path / "generator"), saved_unet(zoo.FOLDER / "tiny-sd")
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], weight.float()) for name, weight in original.items())


@pytest.mark.ray
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 3}, "finetune.batch_pairs=8 cannot be shared by finetune.workers=3"),
        ({"workers": 4}, "finetune.workers=4, but this cluster has room for 1 "),
    ],
)
def test_workers_that_do_not_fit_are_one_sentence(ray_cluster, tmp_path, changes, message):
    settings: Any = replace(SETTINGS, **changes)
    with pytest.raises(ValueError, match=message):
        finetune(None, settings, EdgeObjective(settings, "tiny-clip"), seed=0, stage=stage_in(tmp_path))  # type: ignore[arg-type]


@pytest.mark.chaos  # VLCP's whole run looks at its generator in every test run
@pytest.mark.ray
def test_ray_train_writes_a_generator_and_its_losses(ray_cluster, tmp_path):
    from diffusers import StableDiffusionPipeline

    settings = replace(SETTINGS, steps=4, space="latent", checkpoint_steps=2)
    objective, stage = EdgeObjective(settings, "tiny-clip"), stage_in(tmp_path)
    data = Data(uri="shapes:20?seed=1", rows_per_shard=10)  # two batches an epoch
    result = finetune(training_pairs(data, image_px=32, seed=0), settings, objective, seed=0, stage=stage)
    losses = stage.store.read_parquet(LOSSES).to_pylist()
    assert [record["step"] for record in losses] == [1, 2, 3, 4]
    assert all(np.isfinite(list(record.values())).all() for record in losses)
    assert result.extra["last"] == losses[-1]
    assert result.outputs is not None
    assert sorted(result.outputs) == stage.store.files()  # nothing else is left, no checkpoint either

    saved, original = saved_unet(tmp_path / "generator"), saved_unet(zoo.FOLDER / "tiny-sd")
    assert any(not torch.equal(saved[name], weight.float()) for name, weight in original.items())
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "generator", use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline("a red circle", height=32, width=32, num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, 32, 32, 3)


class Stumbling(nn.Module):
    """EDGE's loss that writes down every batch it sees, and breaks once at the third step of rank 0."""

    def __init__(self, loss: EdgeLoss, folder: Path) -> None:
        super().__init__()
        self.loss, self.folder = loss, folder

    def forward(self, images: np.ndarray, captions: list[str], noise: torch.Generator) -> dict[str, Tensor]:
        seen = self.folder / f"rank{dist.get_rank()}"
        with seen.open("a") as file:
            print(len(captions), *captions, sep="|", file=file)
        if dist.get_rank() == 0 and len(seen.read_text().splitlines()) == 3:
            raise RuntimeError("a machine is lost")
        return self.loss(images, captions, noise)


@dataclass(frozen=True)
class StumblingObjective:
    settings: EdgeFinetune
    folder: Path

    def build(self, pipeline: Any) -> Stumbling:
        return Stumbling(EdgeLoss(pipeline, self.settings, "tiny-clip"), self.folder)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_two_workers_go_on_from_their_checkpoint(ray_cluster, tmp_path, monkeypatch):
    """EDGE's loss in DDP on Ray Train, which starts both workers again after one of them broke."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    half = {"num_cpus": 0.5, "num_gpus": 0}
    monkeypatch.setattr("mmdd_ray.engine.ray_train.pool_size", lambda actors, gpus: 2)
    monkeypatch.setattr("mmdd_ray.engine.ray_train.actor_resources", lambda gpus: half)
    settings = replace(SETTINGS, steps=4, space="latent", checkpoint_steps=2, workers=2)
    data = Data(uri="shapes:24?seed=1", rows_per_shard=6)
    stage = stage_in(tmp_path / "stage")
    objective = StumblingObjective(settings, tmp_path)
    finetune(training_pairs(data, image_px=32, seed=0), settings, objective, seed=0, stage=stage)

    assert [record["step"] for record in stage.store.read_parquet(LOSSES).to_pylist()] == [1, 2, 3, 4]
    seen = [(tmp_path / f"rank{rank}").read_text().splitlines() for rank in range(2)]
    assert len(seen[0]) == 5  # steps 1, 2, the broken 3, and after the checkpoint of step 2 only 3 and 4
    assert seen[0][2] == seen[0][3]
    assert all(line.startswith("4|") for own in seen for line in own)  # half of the batch each
    assert not set(seen[0][:2]) & set(seen[1][:2])
