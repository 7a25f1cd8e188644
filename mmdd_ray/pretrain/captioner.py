"""tiny-captioner: a small BLIP, the transformers class that captions real photographs too."""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from mmdd_ray.data import shapes
from mmdd_ray.data.web_scenes import scene
from mmdd_ray.pretrain.corpus import HELD_OUT_SEED, IMAGE_PX, WEB, Corpus, draw_broad, draw_corpus
from mmdd_ray.pretrain.loop import Fit
from mmdd_ray.pretrain.naming import MEAN, STD, begin_with_names, normalise
from mmdd_ray.pretrain.tokenizers import CONTEXT, bert_tokenizer

BATCH = 96
WIDTH = 128


class Pooled(nn.Module):
    """An image encoder of transformers as a plain function: images (B, 3, H, W) to pooled features (B, width)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return self.encoder(images).pooler_output


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
    """Train tiny-captioner on right captions of the broad world, as captioners are tuned on people's descriptions.

    Its image encoder first learns to name single objects, as BLIP's begins with one pretrained on ImageNet.

    Returns:
        How often, in percent, it names colour and shape of the main object of held-out scenes of the web's world;
        and `seconds`.
    """
    torch.manual_seed(seed)
    tokenizer = bert_tokenizer()
    model = new_model(tokenizer, width=WIDTH, layers=2, image_px=IMAGE_PX, patch_px=4).to(device)
    corpus = draw_broad(scenes)
    encoder = Pooled(model.vision_model)
    seconds = begin_with_names(
        "tiny-captioner-images", encoder, WIDTH, corpus, steps=naming_steps, seed=seed, work=work
    )
    fit = Fit("tiny-captioner", model.parameters(), lr=1e-3, steps=steps, seed=seed, work=work)
    for rows in fit.batches(len(corpus), BATCH):
        fit.step(loss(model, tokenizer, corpus, rows))
    named = _named_right(model.eval(), tokenizer, device)
    save(model, tokenizer, out)
    return {"main_object_named": named, "seconds": seconds + fit.seconds}


def new_model(
    tokenizer: BertTokenizer, *, width: int, layers: int, image_px: int, patch_px: int
) -> BlipForConditionalGeneration:
    """A BLIP with random weights, of `layers` layers for images and as many for text."""
    both = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
    }
    config = BlipConfig(
        text_config={
            **both,
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": width,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **both,
            "image_size": image_px,
            "patch_size": patch_px,
            "initializer_range": width**-0.5,  # transformers' default, 1e-10, hardly trains
        },
        projection_dim=width,
    )
    return BlipForConditionalGeneration(config)


def save(model: BlipForConditionalGeneration, tokenizer: BertTokenizer, out: Path) -> None:
    """Save the model in half precision, with its processor."""
    model.generation_config.max_new_tokens = CONTEXT - 2
    model.half().save_pretrained(out)
    side = model.config.vision_config.image_size
    square = {"height": side, "width": side}
    BlipProcessor(BlipImageProcessor(size=square, image_mean=MEAN, image_std=STD), tokenizer).save_pretrained(
        out
    )


def loss(
    model: BlipForConditionalGeneration, tokenizer: BertTokenizer, corpus: Corpus, rows: Tensor
) -> Tensor:
    """Mean loss of a token, in nats, of one of the five right captions of each of the images `rows`."""
    which = torch.randint(5, (len(rows),)).tolist()
    captions = [corpus.true_captions[r][i] for r, i in zip(rows.tolist(), which, strict=True)]
    text = tokenizer(captions, padding=True, truncation=True, return_tensors="pt").to(model.device)
    text.input_ids[:, 0] = tokenizer.bos_token_id  # BLIP's decoder starts with [DEC]
    return model(
        pixel_values=normalise(corpus.images[rows]).to(model.device),
        input_ids=text.input_ids,
        attention_mask=text.attention_mask,
        labels=text.input_ids.masked_fill(text.attention_mask == 0, -100),
    ).loss


@torch.inference_mode()
def _named_right(
    model: BlipForConditionalGeneration, tokenizer: BertTokenizer, device: torch.device, scenes: int = 500
) -> float:
    """Percent of held-out captions that hold the main object's colour directly before its shape."""
    corpus = draw_corpus(scenes, seed=HELD_OUT_SEED, world=WEB)
    written = []
    for images in corpus.images.split(100):
        tokens = model.generate(pixel_values=normalise(images).to(device), max_new_tokens=CONTEXT - 2)
        written += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    right = 0
    for index, text in enumerate(written):
        main = scene(index, seed=HELD_OUT_SEED, world=WEB).named.objects[0]
        names = shapes.SYNONYMS.get(main.shape, (main.shape,))
        right += any(f"{main.colour} {name}" in text for name in names)
    return 100 * right / scenes
