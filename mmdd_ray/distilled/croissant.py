"""A distilled set as Croissant 1.1 describes it: its files, its records, their origin and their limits.

The specification is docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html; provenance is told by PROV-O as its
section on responsible AI asks, and the properties ``rai:`` are those of the extension RAI 1.0.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from mmdd_ray.distilled.card import limits
from mmdd_ray.distilled.licences import model_licence
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.storage.redact import redact

CROISSANT = "croissant.json"
CONFORMS_TO = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
_TERMS = """
annotation arrayShape citeAs column containedIn equivalentProperty excludes extract field fileObject fileProperty
fileSet format includes isArray isLiveDataset jsonPath key md5 parentField path readLines recordSet references regex
repeated replace samplingRate sdVersion separator source subField transform unArchive value
"""
_JSON: Mapping[str, object] = {"@type": "@json"}
CONTEXT: Mapping[str, object] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "name": {"@container": "@language"},
    "description": {"@container": "@language"},
    "data": {"@id": "cr:data", **_JSON},
    "examples": {"@id": "cr:examples", **_JSON},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    **{term: f"cr:{term}" for term in _TERMS.split()},
}
"""The JSON-LD context of the specification's appendix, with PROV-O."""
SPDX = {
    name.lower(): name
    for name in (
        "Apache-2.0",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "CC-BY-4.0",
        "CC-BY-NC-4.0",
        "CC-BY-NC-ND-4.0",
        "CC-BY-NC-SA-4.0",
        "CC-BY-ND-4.0",
        "CC-BY-SA-4.0",
        "CC0-1.0",
        "MIT",
        "ODbL-1.0",
    )
}
"""SPDX identifiers, by the hub's spelling of them."""
FORMATS = {"tar": "application/x-tar", "json": "application/json", "png": "image/png"}
OTHER_FORMAT = "application/octet-stream"
RECORDS = "records"
RECORDS_FILE = "records.json"


def records_file(manifest: Mapping[str, Any], samples: Sequence[Sample]) -> bytes:
    """The records of all samples in one JSON file: mlcroissant reads no JSON inside of tars."""
    names = [
        f"{shard['name'].removesuffix('.tar')}{row:04d}.png"
        for shard in manifest["shards"]
        for row in range(shard["rows"])
    ]
    records = [
        {
            "file_name": name,
            "key": sample.key,
            "captions": list(sample.captions),
            "source_key": sample.source_key,
            "seed": sample.seed,
            "label": sample.label,
        }
        for name, sample in zip(names, samples, strict=True)
    ]
    return json.dumps(records, ensure_ascii=False, indent=1).encode()


def croissant(
    manifest: Mapping[str, Any],
    *,
    name: str,
    url: str,
    files_at: str,
    creator: Mapping[str, str],
    licence: str,
    published: date,
    files: Mapping[str, tuple[int, str]],
) -> dict[str, Any]:
    """The JSON-LD document that describes a published set.

    Args:
        manifest: The set's manifest.json.
        url: The page of the set.
        files_at: The URL below which its files are.
        creator: "type" (Person or Organization), "name" and "url" of who publishes it.
        licence: An identifier of the hub, such as "cc-by-4.0".
        published: The day of its first publication.
        files: Bytes and SHA-256 of the files beside the shards, by name.
    """
    shards = {shard["name"]: (shard["bytes"], shard["sha256"]) for shard in manifest["shards"]}
    described = "images of classes" if manifest.get("classes") else "images with captions"
    return {
        "@context": dict(CONTEXT),
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": name,
        "description": f"{manifest['images']:,} synthetic {described}, made by {manifest['method']} to train a model "
        "nearly as well as the large real dataset that they were distilled from.",
        "url": url,
        "creator": {"@type": f"sc:{creator['type']}", "name": creator["name"], "url": creator["url"]},
        "license": f"https://spdx.org/licenses/{SPDX[licence]}.html"
        if licence in SPDX
        else {"@type": "sc:CreativeWork", "name": licence, "url": url},
        "citeAs": f"@misc{{{name}, title={{{{{name}: {manifest['images']:,} synthetic {described}}}}}, "
        f"author={{{{{creator['name']}}}}}, year={{{published.year}}}, howpublished={{\\url{{{url}}}}}}}",
        "datePublished": published.isoformat(),
        "dateCreated": manifest["created"][:10],
        "version": f"1.0.0+sha256.{manifest['checksum'][:12]}",
        "keywords": ["dataset distillation", "synthetic data", manifest["method"]],
        **_responsible(manifest),
        **_provenance(manifest),
        "distribution": [
            *(_file(file, files_at, *facts) for file, facts in (shards | dict(files)).items()),
            _images(list(shards)),
        ],
        "recordSet": [_records(manifest), *_classes(manifest)],
    }


def _file(name: str, files_at: str, size_bytes: int, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": f"{files_at}/{name}",
        "contentSize": f"{size_bytes} B",
        "encodingFormat": FORMATS.get(name.rpartition(".")[2], OTHER_FORMAT),
        "sha256": sha256,
    }


def _images(shards: Sequence[str]) -> dict[str, Any]:
    """The images in the shards."""
    return {
        "@type": "cr:FileSet",
        "@id": "images",
        "name": "images",
        "containedIn": [{"@id": shard} for shard in shards],
        "encodingFormat": FORMATS["png"],
        "includes": "*.png",
    }


def _records(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A record for each image: a line of the file of records, joined to the image that it names."""

    def field(name: str, kind: str | list[str], description: str, **more: Any) -> dict[str, Any]:
        return {
            "@type": "cr:Field",
            "@id": f"{RECORDS}/{name}",
            "name": name,
            "description": description,
            "dataType": kind,
            "source": from_record(name),
            **more,
        }

    def from_record(name: str) -> dict[str, Any]:
        return {"fileObject": {"@id": RECORDS_FILE}, "extract": {"jsonPath": f"$[*].{name}"}}

    def from_image(what: str) -> dict[str, Any]:
        return {"fileSet": {"@id": "images"}, "extract": {"fileProperty": what}}

    joined = {"source": from_image("filename"), "references": from_record("file_name")}
    fields = [
        field("member", "sc:Text", "Name of the image in its shard.", **joined),
        field("file_name", "sc:Text", "The same name in the file of records."),
        field("image", "sc:ImageObject", "The synthetic image.", source=from_image("content")),
        field("captions", "sc:Text", "All captions of the image.", isArray=True, arrayShape="-1"),
        field("key", "sc:Text", "Unique name of the image."),
        field("source_key", "sc:Text", "Name of the real pair that the image goes back to."),
        field("seed", "sc:Integer", "Seed that the image was drawn with."),
    ]
    if manifest.get("classes"):
        fields.append(field("label", ["sc:Integer", "cr:Label"], "Number of its class."))
    return {"@type": "cr:RecordSet", "@id": RECORDS, "name": RECORDS, "field": fields}


def _classes(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The classes of a labelled set, as an enumeration."""
    if not manifest.get("classes"):
        return []
    kinds = {"label": "sc:Integer", "name": "sc:Text"}
    return [
        {
            "@type": "cr:RecordSet",
            "@id": "classes",
            "name": "classes",
            "dataType": "sc:Enumeration",
            "key": {"@id": "classes/label"},
            "field": [
                {"@type": "cr:Field", "@id": f"classes/{name}", "name": name, "dataType": kind}
                for name, kind in kinds.items()
            ],
            "data": [
                {"classes/label": int(label), "classes/name": name}
                for label, name in manifest["classes"].items()
            ],
        }
    ]


def _data(manifest: Mapping[str, Any]) -> str:
    return redact(str(manifest.get("settings", {}).get("data", {}).get("uri", "a dataset without a name")))


def _responsible(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Properties of the extension for responsible AI."""
    writers = [
        model["name"]
        for role, model in manifest.get("models", {}).items()
        if role in ("captioner", "describer")
    ]
    return {
        "rai:dataCollection": f"The images are synthetic. The method {manifest['method']} of mmdd-ray "
        f"{manifest.get('package_version', '')} made them from the data of {_data(manifest)}; manifest.json has every "
        "setting.",
        "rai:dataCollectionRawData": _data(manifest),
        "rai:dataLimitations": limits(manifest),
        "rai:dataBiases": [
            "The set takes over the biases of the real data and of the models that made it; they were not measured."
        ],
        "rai:dataUseCases": [
            "Training: it replaces a large dataset where models are trained often, as in the search for settings or "
            "architectures, and in continual learning.",
            "Not for testing, and no evidence of what the real world looks like.",
        ],
        "rai:personalSensitiveInformation": [
            "Not searched for. Real captions may name people, and an image may resemble a real one."
        ],
        **({"rai:machineAnnotationTools": writers} if writers else {}),
    }


def _provenance(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Sources of the set, and the activity that made it, in the words of PROV-O."""
    start = manifest.get("inputs", {}).get("start")
    sources = [_data(manifest), *([redact(start["uri"])] if start else [])]
    agents = [
        {
            "@type": "prov:SoftwareAgent",
            "prov:label": f"{model['name']} ({role}); {model_licence(model['name'])}",
        }
        for role, model in manifest.get("models", {}).items()
    ]
    return {
        "prov:wasDerivedFrom": [{"@type": "prov:Entity", "prov:label": source} for source in sources],
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:label": f"{manifest['method']}, seed {manifest['seed']}",
            "prov:endedAtTime": manifest["created"],
            "prov:wasAssociatedWith": [
                {
                    "@type": "prov:SoftwareAgent",
                    "prov:label": f"mmdd-ray {manifest.get('package_version', '')}",
                },
                *agents,
            ],
        },
    }
