"""tiny-clip: a two-tower CLIP in open_clip's own format."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch import Tensor

from mmdd_ray.pretrain.corpus import HELD_OUT_SEED, IMAGE_PX, TRAIN_SEED, Corpus, batches, draw_corpus
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


def train(out: Path, *, scenes: int, steps: int, seed: int, device: torch.device) -> dict[str, float]:
    """Train tiny-clip, save it to `out`, and return its retrieval metrics (percent) on 500 held-out scenes."""
    torch.manual_seed(seed)
    tokenizer = clip_tokenizer()
    config = model_config(len(tokenizer))
    text_cfg = {k: v for k, v in config["text_cfg"].items() if k != "hf_tokenizer_name"}
    model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text_cfg).to(device)
    corpus = draw_corpus(scenes, seed=TRAIN_SEED)
    tokens_NCL = _tokenize(tokenizer, corpus)
    fit = Fit("tiny-clip", model.parameters(), lr=1e-3, steps=steps, weight_decay=0.1)
    criterion, pick = ClipLoss(), torch.Generator().manual_seed(seed)
    for rows in batches(len(corpus), BATCH, steps, seed=seed):
        images = normalise(corpus.images[rows]).to(device)
        caption = torch.randint(tokens_NCL.shape[1], (len(rows),), generator=pick)
        texts = tokens_NCL[rows, caption].to(device)
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
    return evaluate(model.eval(), tokenizer, draw_corpus(HELD_OUT, seed=HELD_OUT_SEED), device)


def normalise(images_u8: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> float32, shifted and scaled as tiny-clip expects."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images_u8.float() / 255 - mean) / std


def _tokenize(tokenizer: Any, corpus: Corpus) -> Tensor:
    """(N, captions, context) int64."""
    flat = [caption for captions in corpus.captions for caption in captions]
    tokens = tokenizer(flat, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
    return tokens.input_ids.view(len(corpus), -1, CONTEXT)


@torch.no_grad()
def evaluate(model: Any, tokenizer: Any, corpus: Corpus, device: torch.device) -> dict[str, float]:
    """Retrieval metrics (percent) over all captions of `corpus`."""
    from mmdd_ray.evaluate.retrieval import retrieval_metrics

    tokens = _tokenize(tokenizer, corpus)
    images = model.encode_image(normalise(corpus.images).to(device), normalize=True)
    texts = model.encode_text(tokens.flatten(0, 1).to(device), normalize=True)
    owner = torch.arange(len(corpus)).repeat_interleave(tokens.shape[1])
    return retrieval_metrics(images.cpu().numpy(), texts.cpu().numpy(), owner.numpy())
