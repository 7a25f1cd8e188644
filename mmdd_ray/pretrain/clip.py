"""tiny-clip: a two-tower CLIP in open_clip's own format."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch import Tensor, nn

from mmdd_ray.data.shapes import CLASS_NAMES
from mmdd_ray.engine.precision import autocast, fastest
from mmdd_ray.pretrain.corpus import HELD_OUT_SEED, IMAGE_PX, WEB, Corpus, draw_broad, draw_corpus
from mmdd_ray.pretrain.loop import Fit
from mmdd_ray.pretrain.naming import MEAN, STD, begin_with_names, named_right, normalise
from mmdd_ray.pretrain.tokenizers import CONTEXT, clip_tokenizer

BATCH = 256
HELD_OUT = 500
SCENE_PROMPTS = tuple(f"a picture of a {name}" for name in CLASS_NAMES)


def model_config(
    vocab_size: int,
    *,
    image_model: str = "test_resnet",
    image_px: int = IMAGE_PX,
    width: int = 128,
    layers: int = 3,
) -> dict[str, Any]:
    """open_clip's `model_cfg`, by default that of tiny-clip; `image_model` is one of timm's."""
    return {
        "embed_dim": width,
        "vision_cfg": {
            "image_size": image_px,
            "timm_model_name": image_model,
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "tiny-clip",  # read from the model's own folder
            "width": width,
            "heads": 4,
            "layers": layers,
        },
    }


def new_model(config: dict[str, Any]) -> open_clip.CLIP:
    """A CLIP with random weights."""
    text_cfg = {k: v for k, v in config["text_cfg"].items() if k != "hf_tokenizer_name"}
    return open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text_cfg)


def train(
    out: Path,
    *,
    scenes: int,
    naming_steps: int,
    steps: int,
    seed: int,
    device: torch.device,
    work: Path | None = None,
) -> dict[str, float]:
    """Train tiny-clip on noisy pairs of the broad world and save it to `out`.

    The image tower first learns to name single objects, as towers that are pretrained on labels (LiT, Zhai et al.,
    CVPR 2022). From scratch it learned colours and places from pairs, and told shapes no better than by chance.

    Returns:
        Its retrieval metrics (percent) on 500 held-out scenes of the web's world with right captions; how often
        (percent) it finds the class of held-out labelled scenes, `class_accuracy`, and `seconds`.
    """
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    config = model_config(len(tokenizer))
    model = new_model(config).to(device)
    corpus = draw_broad(scenes)
    half = len(corpus) // 2
    seconds = begin_with_names(
        "tiny-clip-images",
        model.visual,
        config["embed_dim"],
        corpus,
        steps=naming_steps,
        seed=seed,
        work=work,
    )
    tokens_NL = tokenize(tokenizer, [caption for (caption,) in corpus.captions])
    fit = Fit(
        "tiny-clip", model.parameters(), lr=1e-3, steps=steps, seed=seed, weight_decay=0.1, work=work,
        beside={"model": model},
    )  # fmt: skip
    for rows in fit.batches(half, BATCH):
        rows = rows + half * (fit.done % 2)  # pictures of one kind at a time: they are harder to tell apart
        contrast(fit, model, corpus.images[rows], tokens_NL[rows])
    save(model, config, tokenizer, out)
    held_out = draw_corpus(HELD_OUT, seed=HELD_OUT_SEED, world=WEB)
    return {
        **evaluate(model.eval(), tokenizer, held_out, device),
        "class_accuracy": named_right(ByNames(model, tokenizer)),
        "seconds": seconds + fit.seconds,
    }


def contrast(fit: Fit, model: open_clip.CLIP, images_u8: Tensor, tokens_BL: Tensor) -> None:
    """One step down CLIP's loss of a batch of pairs."""
    device = next(model.parameters()).device
    images, texts = normalise(images_u8).to(device), tokens_BL.to(device)
    with autocast(device, fastest("auto")):
        image_BD, text_BD, scale = model(images, texts)
        loss = ClipLoss()(image_BD, text_BD, scale)
    found = (image_BD @ text_BD.T).argmax(dim=0).cpu() == torch.arange(len(images))
    fit.step(loss, recall_in_batch=found.float().mean().item())
    with torch.no_grad():
        model.logit_scale.clamp_(0, 4.6052)  # temperature of at least 0.01, as CLIP


def save(model: open_clip.CLIP, config: dict[str, Any], tokenizer: Any, out: Path) -> None:
    """Save the model in half precision as open_clip's `local-dir:` reads it."""
    out.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    card = {"model_cfg": config, "preprocess_cfg": preprocess}
    (out / "open_clip_config.json").write_text(json.dumps(card, indent=2) + "\n")
    weights = {
        name: (one.half() if one.is_floating_point() else one).contiguous()
        for name, one in model.state_dict().items()
    }
    save_file(weights, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(out)


class ByNames(nn.Module):
    """A CLIP as zero-shot classifier, by default of labelled scenes: images to logits (B, classes)."""

    def __init__(self, model: open_clip.CLIP, tokenizer: Any, prompts: Sequence[str] = SCENE_PROMPTS) -> None:
        super().__init__()
        self.model = model
        device = next(model.parameters()).device
        names = list(prompts)
        with torch.inference_mode():
            self.texts_CD = model.encode_text(tokenize(tokenizer, names).to(device), normalize=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images, normalize=True) @ self.texts_CD.T


def tokenize(tokenizer: Any, captions: list[str]) -> Tensor:
    """(N, context) int64."""
    options = {"padding": "max_length", "max_length": CONTEXT, "truncation": True, "return_tensors": "pt"}
    return tokenizer(captions, **options).input_ids


@torch.no_grad()
def evaluate(model: Any, tokenizer: Any, corpus: Corpus, device: torch.device) -> dict[str, float]:
    """Retrieval metrics (percent) over all right captions of `corpus`."""
    from mmdd_ray.evaluation.retrieval import retrieval_metrics

    flat = [caption for own in corpus.true_captions for caption in own]
    images = model.encode_image(normalise(corpus.images).to(device), normalize=True)
    texts = model.encode_text(tokenize(tokenizer, flat).to(device), normalize=True)
    owner = torch.arange(len(corpus)).repeat_interleave(len(flat) // len(corpus))
    return retrieval_metrics(images.cpu().numpy(), texts.cpu().numpy(), owner.numpy())
