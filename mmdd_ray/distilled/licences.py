"""Licences of the models and data sets that presets name, to our knowledge; of others, whoever names them knows."""

from collections.abc import Mapping
from typing import Any

from mmdd_ray.config.data import SOURCES

APACHE = "Apache-2.0"
OURS = f"{APACHE}, as mmdd-ray"
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
    "shapes:": OURS,
}
"""By the beginning of the URI."""
IDENTIFIERS: Mapping[str, str] = {
    APACHE: "apache-2.0",
    OURS: "apache-2.0",
    "BSD-3-Clause": "bsd-3-clause",
    "CreativeML OpenRAIL-M": "creativeml-openrail-m",
    "CreativeML OpenRAIL++-M": "openrail++",
    "Llama 2 Community License": "llama2",
    "MIT": "mit",
}
"""The hub's identifiers of licences, by our words for them; terms that are no single licence have none."""
UNKNOWN_MODEL = "licence: see its own card"
UNKNOWN_DATA = "licence: see where they come from"


def model_licence(name: str) -> str:
    """The licence of a model, in words."""
    if name.startswith("tiny-"):
        return OURS
    return MODELS.get(name.removesuffix(" (a server's)"), UNKNOWN_MODEL)


def data_licence(uri: str) -> str:
    """The licences of the sources that a URI names, in words."""
    found = [
        next((licence for start, licence in DATA.items() if source.startswith(start)), UNKNOWN_DATA)
        for source in uri.split(SOURCES)
    ]
    return "; ".join(dict.fromkeys(found))


def licences_of(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The licence, in words, of each model that made a set and of the data that it was made from."""
    models, uri = manifest.get("models"), manifest.get("settings", {}).get("data", {}).get("uri")
    found = {
        f"{model['name']} ({role})": model_licence(model["name"]) for role, model in (models or {}).items()
    }
    if not models:
        found["the models that made it"] = UNKNOWN_MODEL
    found["the real data" if uri is None else uri] = UNKNOWN_DATA if uri is None else data_licence(uri)
    if start := manifest.get("inputs", {}).get("start"):
        found[start["uri"]] = "licence: see the set that it began as"
    return found


def set_licence(manifest: Mapping[str, Any]) -> str | None:
    """The hub's identifier of the licence that all models and data of a set share, or None if they differ."""
    found = {IDENTIFIERS.get(licence) for licence in licences_of(manifest).values()}
    return found.pop() if len(found) == 1 else None
