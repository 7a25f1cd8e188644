"""Licences of the models and data sets that presets name, to our knowledge; of others, whoever names them knows."""

from collections.abc import Mapping

APACHE = "Apache-2.0"
MODELS: Mapping[str, str] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "CreativeML OpenRAIL-M",
    "stabilityai/stable-diffusion-xl-base-1.0": "CreativeML OpenRAIL++-M",
    "llava-hf/llava-1.5-7b-hf": "Llama 2 Community License",
    "Qwen/Qwen3-VL-8B-Instruct": APACHE,
    "Salesforce/blip-image-captioning-base": "BSD-3-Clause",
    "google-bert/bert-base-uncased": APACHE,
    "nfnet_l0": APACHE,
    "ViT-B-32/laion2b_s34b_b79k": "MIT",
}
DATA: Mapping[str, str] = {
    "hf://datasets/pixparse/cc3m-wds": "CC3M: annotations for any purpose; images belong to whoever put them online",
    "hf://datasets/undefined443/coco-karpathy-wds": "COCO: annotations CC BY 4.0; images under Flickr's terms",
    "shapes:": f"{APACHE}, as mmdd-ray",
}
"""By the beginning of the URI."""


def model_licence(name: str) -> str:
    """The licence of a model, in words."""
    if name.startswith("tiny-"):
        return f"{APACHE}, as mmdd-ray"
    return MODELS.get(name.removesuffix(" (a server's)"), "licence: see its own card")


def data_licence(uri: str) -> str:
    """The licence of a source, in words."""
    known = [licence for start, licence in DATA.items() if uri.startswith(start)]
    return known[0] if known else "licence: see where they come from"
