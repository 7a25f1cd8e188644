"""The card of a distilled set, for people and for hubs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from mmdd_ray.distilled.contact_sheet import spread
from mmdd_ray.distilled.licences import data_licence, model_licence, set_licence
from mmdd_ray.distilled.sample import CARD_EXAMPLES, Sample


def dataset_card(manifest: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """README.md of the set: Markdown with the YAML front matter that the Hugging Face hub reads."""
    # the front matter is written as JSON values, which YAML reads; Markdown has its own escapes
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "markdown": escape_markdown,
        "model_licence": model_licence,
        "data_licence": data_licence,
    }
    return environment.get_template("card.md.jinja").render(
        manifest=manifest,
        licence=set_licence(manifest),
        limits=limits(manifest),
        size_category=_size_category(manifest["images"]),
        examples=spread(samples, CARD_EXAMPLES),
        last_shard=manifest["shards"][-1]["name"].removesuffix(".tar"),
    )


def limits(manifest: Mapping[str, Any]) -> list[str]:
    """The limits of a set that its users must know, a paragraph each."""
    network = "network" if manifest.get("classes") else "pair of encoders"
    return [
        "The images are synthetic: they show no real event and may look unlike any photograph. The set is made for "
        "training, not for viewing.",
        f"{_texts(manifest)} The set has the errors, the biases and the licence of the real dataset; the licences of "
        "the models that made it apply as well. They are named to our knowledge: check them before publishing the set.",
        "A model trained on a set this small is worse than one trained on all the real data. The report of the run "
        f"says by how much, for one {network}; others may gain less.",
    ]


def _texts(manifest: Mapping[str, Any]) -> str:
    """Who wrote the texts of a set."""
    described = manifest.get("settings", {}).get("describe", {}).get("source")
    if described == "vlm":
        return "A model wrote the descriptions, and they may be wrong."
    if described == "template":
        return "The descriptions say the class and nothing else."
    if manifest["captions_per_image"]["max"] > 1:
        return "The first captions are real ones; a model wrote the others, and they may be wrong."
    if manifest.get("learnt") and "captioner" in manifest["models"]:
        return "The captions are real ones or were written by a model, and they may be wrong."
    return "The captions are real ones."


def escape_markdown(text: object) -> str:
    """``text`` on one line, so that Markdown shows its characters and no markup or HTML."""
    line = re.sub(r"[\\`*_\[\]<>#|~&$]", r"\\\g<0>", " ".join(str(text).split()))
    return re.sub(r"^(\d*)([-+.)])", r"\1\\\2", line)  # would start a list


def _size_category(images: int) -> str:
    """The hub's name for the order of magnitude."""
    limits = {"n<1K": 10**3, "1K<n<10K": 10**4, "10K<n<100K": 10**5, "100K<n<1M": 10**6}
    return next((name for name, limit in limits.items() if images < limit), "1M<n<10M")
