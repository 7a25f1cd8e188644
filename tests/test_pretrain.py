"""The trainings of the tiny zoo: a few steps of each lower its loss and leave what the loaders load."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from mmdd_ray import pretrain
from mmdd_ray.config import Students
from mmdd_ray.data.web_scenes import scene
from mmdd_ray.models import zoo
from mmdd_ray.pretrain import QUALITY, captioner, clip, corpus, diffusion, loop, naming, students, train_zoo
from mmdd_ray.pretrain.loop import Fit

CPU = torch.device("cpu")


def test_a_fit_goes_downhill_with_clipped_gradients() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    fit = Fit("bowl", [weight], lr=0.1, steps=60, seed=0, weight_decay=0.0)
    first = weight.square().sum().item()
    for _ in range(60):
        fit.step(100 * weight.square().sum(), seen=1.0)
    assert weight.square().sum().item() < 0.1 * first
    assert weight.grad is not None
    assert weight.grad.norm() <= 1.0 + 1e-6
    assert fit.mean["seen"] == pytest.approx(1.0)


def test_a_killed_fit_ends_with_the_weights_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(work: Path | None, stop: int | None = None) -> torch.Tensor:
        torch.manual_seed(3)
        weight = torch.nn.Parameter(torch.randn(4))
        fit = Fit("noisy", [weight], lr=0.1, steps=12, seed=5, work=work)
        for rows in fit.batches(10, 3):
            if fit.done == stop:
                return weight.detach()
            fit.step((weight - rows.sum() - torch.randn(4)).square().sum())
        return weight.detach()

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    whole = trained(None)
    trained(tmp_path, stop=7)
    assert (tmp_path / "noisy.pt").exists()
    torch.testing.assert_close(trained(tmp_path), whole, rtol=0, atol=0)
    torch.testing.assert_close(trained(tmp_path), whole, rtol=0, atol=0)  # which has no step left


def test_a_zoo_that_was_killed_trains_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(name: str, out: Path, **_: object) -> dict[str, float]:
        if name in trained:
            raise RuntimeError("killed")
        trained.append(name)
        return {"accuracy": 50.0, "seconds": 1.0}

    monkeypatch.setattr(students, "train_text_encoder", lambda out, **_: train("tiny-bert", out))
    monkeypatch.setattr(students, "train_image_encoder", lambda out, **_: train("tiny-nf", out))
    monkeypatch.setattr(captioner, "train", lambda out, **_: train("tiny-bert", out))
    with pytest.raises(RuntimeError, match="killed"):
        train_zoo(("tiny-bert", "tiny-captioner"), tmp_path, seed=1, threads=1)
    with monkeypatch.context() as changed:
        changed.setattr(pretrain, "recipe", lambda: "another")  # whose tiny-bert has to be trained, too
        with pytest.raises(RuntimeError, match="killed"):
            train_zoo(("tiny-bert",), tmp_path, seed=1, threads=1)
    train_zoo(("tiny-bert", "tiny-nf"), tmp_path, seed=1, threads=1)  # tiny-bert was done
    quality = json.loads((tmp_path / QUALITY).read_text())
    assert quality["tiny-bert"]["accuracy"] == quality["tiny-nf"]["accuracy"] == 50
    assert [path.name for path in tmp_path.iterdir()] == [QUALITY]


def test_half_of_the_broad_corpus_shows_one_labelled_object() -> None:
    drawn = corpus.draw_broad(60)
    for row, index, labelled in ((0, 0, False), (29, 29, False), (30, 0, True), (59, 29, True)):
        one = scene(index, seed=corpus.TRAIN_SEED, world=corpus.BROAD, labelled=labelled)
        assert drawn.captions[row] == one.captions()
        assert drawn.true_captions[row] == one.true_captions()
        assert drawn.labels[row] == one.label
        pixels = torch.from_numpy(np.array(one.render(corpus.IMAGE_PX))).permute(2, 0, 1)
        torch.testing.assert_close(drawn.images[row], pixels, rtol=0, atol=0)
    assert all(
        len(scene(i, seed=corpus.TRAIN_SEED, world=corpus.BROAD, labelled=True).named.objects) == 1
        for i in range(30)
    )
    second = drawn[30:]
    assert len(second) == 30
    assert second.captions == drawn.captions[30:]


def test_an_image_and_a_text_of_several_pairs_are_encoded_once() -> None:
    vae = AutoencoderKL.from_pretrained(Path(zoo.resolve("tiny-sd")) / "vae", torch_dtype=torch.float32)
    text_encoder, tokenizer = diffusion.clip_text_encoder(Path(zoo.resolve("tiny-clip")))
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    captions = [["a red circle", "a star"], ["a star"], ["a red circle"]]
    pairs = diffusion.encode_pairs(vae, text_encoder, tokenizer, images, captions)
    assert (len(pairs), len(pairs.latents), len(pairs.states)) == (4, 3, 2)
    tokens = clip.tokenize(tokenizer, [text for own in captions for text in own])
    with torch.no_grad():
        wanted = vae.encode(diffusion.signed(images[[0, 0, 1, 2]])).latent_dist.mean
        states = text_encoder(tokens).last_hidden_state.half()
    scale = vae.config.scaling_factor
    torch.testing.assert_close(pairs.latents[pairs.image_P], scale * wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pairs.states[pairs.text_P], states, rtol=1e-2, atol=1e-2)
    assert pairs.of_first_images(2).image_P.tolist() == [0, 0, 1]


class Listener(torch.nn.Module):
    """In place of a U-Net: keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.heard: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def forward(self, noisy: torch.Tensor, t: torch.Tensor, state: torch.Tensor) -> SimpleNamespace:
        self.heard.append((noisy, t, state))
        return SimpleNamespace(sample=self.weight * noisy)


def test_a_unet_learns_each_image_with_its_own_texts() -> None:
    image_P, text_P = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 1, 0, 2])
    latents = 1000 * torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)  # far above the noise
    states = torch.arange(3.0)[:, None, None].half()
    pairs = diffusion.EncodedPairs(latents, states, torch.tensor([[-1.0]]).half(), image_P, text_P)
    unet = Listener()
    diffusion.fit_unet(unet, "listener", pairs, lr=0.0, steps=20, seed=1, work=None, batch=5)  # type: ignore[arg-type]
    kept = diffusion.noise_schedule().alphas_cumprod
    heard = {
        (round((image.mean() / kept[step].sqrt()).item() / 1000), int(state.item()))
        for noisy, t, states_BL1 in unet.heard
        for image, step, state in zip(noisy, t, states_BL1, strict=True)
    }
    own = set(zip(image_P.tolist(), text_P.tolist(), strict=True))
    assert own <= heard <= own | {(image, -1) for image in range(4)}  # one text in ten is left out


@pytest.mark.timeout(600)
@pytest.mark.long
@pytest.mark.job
def test_the_whole_chain_from_clip_to_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdd_ray.models.clip import load_clip
    from mmdd_ray.models.generators.stable_diffusion import draw_images, load_pipeline

    monkeypatch.setattr(clip, "HELD_OUT", 60)
    monkeypatch.setattr(naming, "HELD_OUT", 100)
    monkeypatch.setattr(diffusion, "VAE_BATCH", 4)
    found = clip.train(tmp_path / "clip", scenes=600, naming_steps=1, steps=2, seed=0, device=CPU)
    assert 0 <= found["mean_recall"] <= 100
    folder = tmp_path / "sd"
    measured = diffusion.train_vae(
        folder / "vae", scenes=256, steps=2, sharpening_steps=1, seed=0, device=CPU
    )
    assert measured["psnr_db"] > 0
    loss = diffusion.train_unet(
        folder, tmp_path / "clip", scenes=128, steps=1, scene_steps=1, seed=0, device=CPU
    )["loss"]
    assert loss > 0
    (image,) = draw_images(
        load_pipeline(str(folder)), ["a red disc"], [1], image_px=32, inference_steps=2, guidance=2.0
    ).images_BHW3
    assert image.shape == (32, 32, 3)
    assert load_clip(str(tmp_path / "clip")).encode_texts(["a red disc"]).shape == (1, 128)


@pytest.mark.long
@pytest.mark.job
def test_captioner_and_students(tmp_path: Path) -> None:
    from PIL import Image

    from mmdd_ray.models.captioners.captioner import load_captioner
    from mmdd_ray.models.students import load_student

    captioner.train(tmp_path / "captioner", scenes=192, naming_steps=1, steps=3, seed=0, device=CPU)
    written = load_captioner(str(tmp_path / "captioner"), CPU).write(
        [Image.new("RGB", (32, 32))], 1, instructions=(), max_new_tokens=4, seed=0
    )
    assert isinstance(written[0][0], str)
    students.train_image_encoder(tmp_path / "nf", scenes=128, steps=1, seed=0, device=CPU)
    students.train_text_encoder(tmp_path / "bert", scenes=64, steps=1, seed=0, device=CPU)
    load_student(
        Students(image_model=str(tmp_path / "nf"), text_model=str(tmp_path / "bert")), seed=0, device="cpu"
    )
