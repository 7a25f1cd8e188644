"""tiny-clip: a two-tower CLIP in open_clip's own format."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch import Tensor

from mmdd_ray.pretrain.corpus import BROAD, HELD_OUT_SEED, IMAGE_PX, TRAIN_SEED, WEB, Corpus, draw_corpus
from mmdd_ray.pretrain.loop import Fit
from mmdd_ray.pretrain.tokenizers import CONTEXT, clip_tokenizer

MEAN, STD = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
BATCH = 256
HELD_OUT = 500


def model_config(vocab_size: int) -> dict[str, Any]:
    """open_clip's `model_cfg` of tiny-clip."""
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": IMAGE_PX, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "tiny-clip",  # read from the model's own folder
            "width": 128,
            "heads": 4,
            "layers": 3,
        },
    }


def train(
    out: Path, *, scenes: int, steps: int, seed: int, device: torch.device, work: Path | None = None
) -> dict[str, float]:
    """Train tiny-clip on noisy pairs of the broad world and save it to `out`.

    Returns:
        Its retrieval metrics (percent) on 500 held-out scenes of the web's world with right captions, and `seconds`.
    """
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    config = model_config(len(tokenizer))
    text_cfg = {k: v for k, v in config["text_cfg"].items() if k != "hf_tokenizer_name"}
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text_cfg).to(device)
    corpus = draw_corpus(scenes, seed=TRAIN_SEED, world=BROAD)
    tokens_NL = tokenize(tokenizer, [caption for (caption,) in corpus.captions])
    fit = Fit("tiny-clip", model.parameters(), lr=1e-3, steps=steps, seed=seed, weight_decay=0.1, work=work)
    criterion = ClipLoss()
    for rows in fit.batches(len(corpus), BATCH):
        images = normalise(corpus.images[rows]).to(device)
        texts = tokens_NL[rows].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            image_BD, text_BD, scale = model(images, texts)
            loss = criterion(image_BD, text_BD, scale)
        found = (image_BD @ text_BD.T).argmax(dim=0).cpu() == torch.arange(len(rows))
        fit.step(loss, recall_in_batch=found.float().mean().item())
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # temperature of at least 0.01, as CLIP
    out.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    card = {"model_cfg": config, "preprocess_cfg": preprocess}
    (out / "open_clip_config.json").write_text(json.dumps(card, indent=2) + "\n")
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(out)
    held_out = draw_corpus(HELD_OUT, seed=HELD_OUT_SEED, world=WEB)
    return {**evaluate(model.eval(), tokenizer, held_out, device), "seconds": fit.seconds}


def normalise(images_u8: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> float32, shifted and scaled as tiny-clip expects."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images_u8.float() / 255 - mean) / std


def tokenize(tokenizer: Any, captions: list[str]) -> Tensor:
    """(N, context) int64."""
    options = {"padding": "max_length", "max_length": CONTEXT, "truncation": True, "return_tensors": "pt"}
    return tokenizer(captions, **options).input_ids


@torch.no_grad()
def evaluate(model: Any, tokenizer: Any, corpus: Corpus, device: torch.device) -> dict[str, float]:
    """Retrieval metrics (percent) over all right captions of `corpus`."""
    from mmdd_ray.evaluate.retrieval import retrieval_metrics

    flat = [caption for own in corpus.true_captions for caption in own]
    images = model.encode_image(normalise(corpus.images).to(device), normalize=True)
    texts = model.encode_text(tokenize(tokenizer, flat).to(device), normalize=True)
    owner = torch.arange(len(corpus)).repeat_interleave(len(flat) // len(corpus))
    return retrieval_metrics(images.cpu().numpy(), texts.cpu().numpy(), owner.numpy())
