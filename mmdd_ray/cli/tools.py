"""Tools around the jobs, each a dataclass of arguments and what is done with them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mmdd_ray.cli.exits import EXIT_FAILED

SAME_LOSS = 1e-6  # nats
LIKE_LOSS = 0.1  # nats; not measured, but the losses of a student fall by one or more


@dataclass(frozen=True)
class Compare:
    """One table of several finished runs, with the paired differences of their sets."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN")]
    """Run directories: local folders or URIs, at least two. Their students must be alike: the same task, settings and
    test data."""
    out: str = "comparison"
    """Folder or URI for comparison.json and comparison.html."""


def compare(argv: Sequence[str] | None = None, called: str = "mmdd compare") -> int:
    """Finished runs in one table, with the paired differences of their sets."""
    asked = tyro.cli(Compare, args=argv, prog=called)
    from mmdd_ray.evaluation.beside_runs import compare_runs
    from mmdd_ray.evaluation.report.comparison import check_out, comparison_table, write_comparison
    from mmdd_ray.storage.store import Store

    out = Store(asked.out)
    check_out(out)
    found = compare_runs(asked.runs)
    print(comparison_table(found))
    print("\n".join(write_comparison(found, out)))
    return 0


@dataclass(frozen=True)
class Verify:
    """Checks a distilled set: that its shards are whole, and that its images can be made again."""

    set: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SET")]
    """The distilled set: a folder or URI with its manifest.json."""
    regenerate: Annotated[int, tyro.conf.arg(metavar="K")] = 0
    """Make K of its images again, chosen at random, and compare. The set must lie in its run directory."""
    tolerance: Annotated[int, tyro.conf.arg(metavar="LEVELS")] = 0
    """Greatest difference of a pixel, of 255, at which an image still counts as the same. Other devices and other
    versions of libraries round otherwise."""
    seed: int = 0
    """Seed of the choice of the images."""


def verify(argv: Sequence[str] | None = None, called: str = "mmdd verify") -> int:
    """Check a set: that its shards are whole, and that its images can be made again."""
    asked = tyro.cli(Verify, args=argv, prog=called)
    from mmdd_ray.methods import verify as verifying

    found = verifying.verify(asked.set, asked.regenerate, asked.seed)
    print(f"{found.images:,} images, whole; checksum {found.checksum}")
    for name, (then, now) in found.changed.items():
        print(f"made with {name} {then}, here is {now}")
    if not found.differences:
        print("none of its images was made again; --regenerate 5 makes five and compares them")
        return 0
    others = {key: levels for key, levels in found.differences.items() if levels > asked.tolerance}
    for key, levels in others.items():
        print(f"{key} differs by up to {levels} of 255 levels")
    print(f"{len(found.differences) - len(others):,} of {len(found.differences):,} images made again alike")
    return EXIT_FAILED if others else 0


@dataclass(frozen=True)
class Push:
    """Publishes a distilled set on the Hugging Face hub: shards, card with its licence, and a Croissant description."""

    set: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SET")]
    """The distilled set: a folder or URI with its manifest.json."""
    to: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="hf://datasets/OWNER/NAME")]
    """hf://datasets/OWNER/NAME; made if it is not there. The token is HF_TOKEN's, or that of hf auth login."""
    license: str | None = None
    """An identifier of the hub, such as cc-by-4.0. Default: the licence that all models and data of the set have."""
    private: bool = False
    """Make the repository private, if it is made."""
    message: str | None = None
    """Message of the commit."""


def push(argv: Sequence[str] | None = None, called: str = "mmdd push") -> int:
    """Publish a set on the Hugging Face hub."""
    asked = tyro.cli(Push, args=argv, prog=called)
    from mmdd_ray.distilled import push as pushing

    done = pushing.push(
        asked.set, asked.to, license=asked.license, private=asked.private, message=asked.message
    )
    for action, names in (("uploaded", [*done.uploaded]), ("removed", [*done.removed])):
        images = [name for name in names if "/" in name]  # a labelled set has its images as single files, too
        print("".join(f"{action} {name}\n" for name in names if "/" not in name), end="")
        if images:
            print(f"{action} {len(images):,} files of {images[0].partition('/')[0]}/")
    if done.uploaded:
        print(f"{len(done.uploaded):,} files, {sum(done.uploaded.values()):,} bytes")
    if not done.uploaded and not done.removed:
        print("nothing to upload: the hub has this set already")
    print(f"{done.url}, licence {done.licence}")
    return 0


@dataclass(frozen=True)
class Export:
    """Writes the images and captions of a distilled set in the layout of other tools."""

    set: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SET")]
    """The distilled set: a folder or URI with its manifest.json."""
    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Where to: a folder or URI that is empty or not there."""
    layout: Literal["imagefolder", "parquet"] = "imagefolder"
    """imagefolder: images and a metadata.jsonl, for diffusers and load_dataset. parquet: the columns of img2dataset."""


def export(argv: Sequence[str] | None = None, called: str = "mmdd export") -> int:
    """Write a set in the layout of other tools."""
    asked = tyro.cli(Export, args=argv, prog=called)
    from mmdd_ray.distilled import export as exporting

    done = exporting.export(asked.set, asked.folder, asked.layout)
    print(f"{asked.folder}: {done.images:,} images, {done.pairs:,} pairs")
    if done.is_shown_only:
        print(
            "these only show what was learnt; a student trains on learnt_pairs.safetensors of the set itself"
        )
    return 0


@dataclass(frozen=True)
class Student:
    """Trains a student of a finished run's set again, as the run did, and writes it as a model of open_clip."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory of pairs: a local folder or a URI. Its students must be those of the protocol equal-budget."""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "student"
    """New folder for the model, which open_clip and clip_benchmark read as local-dir:FOLDER."""
    set: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Name of the set in the run's report. Default: the first one that is no baseline."""
    draw: int = 0
    """Which distillation, where the run has several."""
    seed: int = 1
    """Which student, from 1 on."""


def student(argv: Sequence[str] | None = None, called: str = "mmdd student") -> int:
    """Write a student of a finished run as a model of open_clip."""
    asked = tyro.cli(Student, args=argv, prog=called)
    from mmdd_ray.engine.progress import duration
    from mmdd_ray.errors import UserError
    from mmdd_ray.methods.student_export import export_student, find_student

    if "://" in asked.out:
        raise UserError(f"--out {asked.out} is no local folder, which is all that open_clip reads; name one")
    found = find_student(asked.run, asked.set, draw=asked.draw, seed=asked.seed)
    figures = found.recorded
    print(
        f"student {found.seed} of {found.set}: mean recall {figures['metrics']['mean_recall']:.1f} in the run; "
        f"trains it again, {figures['steps']:,} steps at the learning rate {figures['learning_rate']:g}, "
        f"which took {duration(figures['seconds'])} there",
        flush=True,
    )
    apart = export_student(found, Path(asked.out))
    print(f"for open_clip and clip_benchmark: local-dir:{Path(asked.out).expanduser().absolute()}")
    if apart <= SAME_LOSS:
        print("its losses are those of the run")
        return 0
    if apart < inf:
        print(f"its losses differ by up to {apart:.2g} from those of the run")
    else:
        print("its loss curve has other points than that of the run")
    if apart <= LIKE_LOSS:
        print("devices and versions of libraries round otherwise; its recalls may differ a little, too")
        return 0
    print("rounding seldom explains so much: take it for another student than that of the report")
    return EXIT_FAILED


@dataclass(frozen=True)
class Status:
    """How far a run is, from any shell or machine that sees its run directory."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run directory: a local folder or a URI."""


def status(argv: Sequence[str] | None = None, called: str = "mmdd status") -> int:
    """How far a run is: stages done, time left, and how to go on."""
    asked = tyro.cli(Status, args=argv, prog=called)
    from mmdd_ray.methods.status_text import show

    print(show(asked.run))
    return 0


TOOLS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "compare": compare,
    "status": status,
    "verify": verify,
    "push": push,
    "export": export,
    "student": student,
}
"""Tools by their command."""
