"""tiny-nf and tiny-bert: student encoders, pretrained without paired data as their big siblings were."""

import json
import math
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, DataCollatorForLanguageModeling

from mmdd_ray.data import shapes
from mmdd_ray.data.web_scenes import scene
from mmdd_ray.pretrain.corpus import BROAD, HELD_OUT_SEED, TRAIN_SEED, WEB, draw_corpus
from mmdd_ray.pretrain.loop import Fit
from mmdd_ray.pretrain.naming import BATCH, MEAN, STD, learn_names, named_right
from mmdd_ray.pretrain.tokenizers import CONTEXT, bert_tokenizer

IMAGE_ARCHITECTURE = "test_nfnet"  # timm's smallest normaliser-free network


def train_image_encoder(
    out: Path, *, scenes: int, steps: int, seed: int, device: torch.device, work: Path | None = None
) -> dict[str, float]:
    """Train tiny-nf to name colour and shape of one object; return held-out accuracy in percent, and `seconds`."""
    torch.manual_seed(seed)
    model = timm.create_model(IMAGE_ARCHITECTURE, num_classes=len(shapes.CLASS_NAMES)).to(device)
    corpus = draw_corpus(scenes, seed=TRAIN_SEED, world=BROAD, labelled=True)
    seconds = learn_names("tiny-nf", model, corpus, steps=steps, seed=seed, work=work)
    accuracy = named_right(model)
    out.mkdir(parents=True, exist_ok=True)
    card = {
        "architecture": IMAGE_ARCHITECTURE,
        "num_classes": len(shapes.CLASS_NAMES),
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": len(shapes.CLASS_NAMES),
            "classifier": "head.fc",
        },
    }
    (out / "config.json").write_text(json.dumps(card, indent=2) + "\n")
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return {"accuracy": accuracy, "seconds": seconds}


def train_text_encoder(
    out: Path, *, scenes: int, steps: int, seed: int, device: torch.device, work: Path | None = None
) -> dict[str, float]:
    """Train tiny-bert to fill in masked words of captions; return held-out accuracy there in percent, and `seconds`."""
    torch.manual_seed(seed)
    tokenizer = bert_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=CONTEXT,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = BertForMaskedLM(config).to(device)
    captions = [c for i in range(scenes) for c in scene(i, seed=TRAIN_SEED, world=BROAD).true_captions()]
    fit = Fit("tiny-bert", model.parameters(), lr=2e-3, steps=steps, seed=seed, max_norm=math.inf, work=work)
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.25)
    for rows in fit.batches(len(captions), BATCH):
        batch = collate([tokenizer(captions[r], truncation=True) for r in rows]).to(device)
        fit.step(model(**batch).loss)
    torch.manual_seed(seed)
    held_out = [scene(i, seed=HELD_OUT_SEED, world=WEB).true_captions()[0] for i in range(500)]
    batch = collate([tokenizer(c, truncation=True) for c in held_out]).to(device)
    with torch.inference_mode():
        filled = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    masked = batch["labels"] != -100
    right = (filled.argmax(dim=-1) == batch["labels"])[masked]
    model.bert.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {"masked_word_accuracy": 100 * right.float().mean().item(), "seconds": fit.seconds}
