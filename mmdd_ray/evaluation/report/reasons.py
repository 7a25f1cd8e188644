"""Likely reasons for the outcome of a set: each is read from figures of the run, and names them.

A check returns a sentence where its figures are a reason, an empty text where they are none, and None where the run
does not have them. Needs no Ray and no torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any

import numpy as np

from mmdd_ray.evaluation.metrics import MAIN_METRIC
from mmdd_ray.evaluation.paired import ALL_EQUAL, ALL_ZERO, LEAST
from mmdd_ray.evaluation.report.differences import over_words
from mmdd_ray.evaluation.report.text import in_sentence, is_near_chance, label_of, signed
from mmdd_ray.evaluation.report.words import CHANCE, TASK_TEXTS

WINDOW = 0.1  # of a training: the part at its start and at its end whose losses are compared
NOISE = 2.0  # standard errors: a fall of a loss within them may be chance
FEW_STEPS = 10  # of a loss curve: with fewer there is nothing to compare
OTHER_LOSS = 1.5  # times the other set's loss of students: beyond it, one set is harder to fit
FEWER_DIRECTIONS = 0.5  # of the effective rank that was possible
NARROWER = 0.75  # of the variance of real images
MORE_SATURATED = 2.0  # times the share of saturated levels of real images, and
SATURATED_POINTS = 2.0  # at least so many percentage points more
MOST_STUDENTS = 100  # that are worth recommending


@dataclass(frozen=True)
class Case:
    """A distilled set beside the baseline that it has to be explained against."""

    report: Any
    ours: str
    theirs: str
    tone: str
    """"below", "level" or "above"."""
    is_own: bool
    """Whether the run distilled the set, so that its losses, agreement and audit are of it."""

    @property
    def label(self) -> str:
        return label_of(self.ours, self.report)

    @property
    def other(self) -> str:
        return in_sentence(self.theirs, self.report)

    @property
    def metric(self) -> str:
        return MAIN_METRIC[self.report["task"]]

    def mean(self, name: str) -> float:
        """The deciding metric of a set, or of chance, in percent."""
        return float(self.report["scores"][name][self.metric]["mean"])


def chance_level(case: Case) -> str | None:
    names = [name for name in case.report["scores"] if name != CHANCE]
    chance, best = case.mean(CHANCE), max(names, key=case.mean)
    if is_near_chance(case.mean(best), chance):
        return (
            f"The students hardly learn here, whatever the set: the best of them reach {case.mean(best):.1f} % where "
            f"chance is {chance:.1f} %. Differences at this level say little about the sets."
        )
    if is_near_chance(case.mean(case.ours), chance):
        return (
            f"Students of {case.label} stay near chance: {case.mean(case.ours):.1f} % where chance is {chance:.1f} %. "
            f"Those of {label_of(best, case.report)} reach {case.mean(best):.1f} %, so the training itself can work."
        )
    return ""


def uncertainty(case: Case) -> str | None:
    """Whether the difference is smaller than what is known of it."""
    found = case.report["differences"].get(case.ours, {}).get(case.theirs)
    if found is None:
        return None
    one, count = found["metrics"][case.metric], found["count"]
    fixed = found["over"] == "students" and case.report["protocol"]["published"]  # the protocol says how many
    if lack := one.get("lack"):
        return _no_interval(case, lack, one["mean"], found, "" if fixed else _setting_of(found))
    if case.tone != "level":
        return ""
    told = (
        f"The difference to {case.other} is {signed(one['mean'])} points, and its 95 % interval reaches from "
        f"{signed(one['low'])} to {signed(one['high'])} points over {count} {over_words(found)}."
    )
    if (
        fixed or not found["paired"]
    ):  # more draws alone do not narrow the interval beside a set that was drawn once
        return told
    mean, half = one["mean"], (one["high"] - one["low"]) / 2
    setting = _setting_of(found)
    needed = max(ceil(count * (half / mean) ** 2), count + 1) if mean else MOST_STUDENTS + 1
    if needed > MOST_STUDENTS:
        return f"{told} To tell a difference this small would take more than {MOST_STUDENTS} {found['over']}."
    return f"{told} About {needed} {found['over']} ({setting}) would tell a difference of this size."


def _no_interval(case: Case, lack: str, mean: float, found: Mapping[str, Any], setting: str) -> str:
    """The sentence for figures that have no interval; ``setting`` has their number, if any has."""
    over, count = over_words(found), found["count"]
    if lack == ALL_ZERO:
        return f"All {count} {over} score exactly the same with {case.label} and {case.other}."
    told = f"The difference to {case.other} is {signed(mean)} points"
    if lack == ALL_EQUAL:
        return (
            f"{told} with every one of {count} {over}: figures of few test data move in steps, so equal "
            "differences say nothing about the spread. More test data"
            + (f", or more {found['over']} ({setting}), would." if setting else " would.")
        )
    return f"{told} over {count} {over}, which are too few to know its spread" + (
        f"; {LEAST} or more ({setting}) would tell." if setting else "."
    )


def _setting_of(found: Mapping[str, Any]) -> str:
    return "evaluation.draws" if found["over"] == "draws" else "evaluation.seeds"


def single_students(case: Case) -> str | None:
    counts = [len(case.report["scores"][name][case.metric]["runs"]) for name in (case.ours, case.theirs)]
    if min(counts) > 1:
        return ""
    return (
        f"A single student was trained on {case.label if counts[0] == 1 else case.other}, so the luck of its start is "
        "part of the figure. Several (evaluation.seeds) would tell."
    )


def classes(case: Case) -> str | None:
    """Whether each class has an image; chance tells the number of classes."""
    if case.report["task"] != "classification":
        return None
    count, images = round(100 / case.mean(CHANCE)), case.report["sets"][case.ours]["images"]
    if images >= count:
        return ""
    return (
        f"{case.label} has {images:,} images for {count:,} classes, so students see no image of at least "
        f"{count - images:,} classes."
    )


def size(case: Case) -> str | None:
    unit = TASK_TEXTS[case.report["task"]]["unit"]
    ours, theirs = (case.report["sets"][name][unit] for name in (case.ours, case.theirs))
    if ours >= theirs:
        return ""
    return f"{case.label} is smaller: it has {ours:,} {unit}, the other set {theirs:,}."


def drawings(case: Case) -> str | None:
    """Whether drawn images fit their captions less than the real ones, by CLIP."""
    found = case.report["agreement"]
    if not (case.is_own and found):
        return None
    if found["drawn"] >= found["real"]:
        return ""
    return (
        f"The drawn images fit their captions less than the real images do: CLIP’s cosine is {found['drawn']:.3f} on "
        f"average against {found['real']:.3f}, and the drawn image is the better one for only "
        f"{found['drawn_better']:.0f} % of the {found['prompts']:,} prompts. Students learn the pairs that they see."
    )


def losses(case: Case) -> str | None:
    """Whether the losses of the distillation fell from the first tenth of their steps to the last."""
    curves = {
        f"{name}{of_part}": [value for value in values if value is not None]
        for part, of_part in (("losses", ""), ("refinement", " of the refinement"))
        for name, values in _decisive(case.report[part]).items()
    }
    curves = {name: values for name, values in curves.items() if len(values) >= FEW_STEPS}
    if not (case.is_own and curves):
        return None
    stuck = [f"“{name}” was {_fall(values)}" for name, values in curves.items() if not _fell(values)]
    if not stuck:
        return ""
    return (
        f"The distillation did not lower every loss that it minimises beyond its noise: {'; '.join(stuck)}. More steps "
        "or another learning rate may help."
    )


def _decisive(columns: Any) -> dict[str, Sequence[float | None]]:
    """The total where there is one, otherwise all terms."""
    terms = {name: values for name, values in columns.items() if name != "step"}
    return {"total": terms["total"]} if "total" in terms else terms


def _ends(values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    width = max(ceil(WINDOW * len(values)), 3)
    return np.array(values[:width]), np.array(values[-width:])


def _fell(values: Sequence[float]) -> bool:
    first, last = _ends(values)
    error = float(np.sqrt(first.var(ddof=1) / len(first) + last.var(ddof=1) / len(last)))
    return bool(first.mean() - last.mean() > NOISE * error)


def _fall(values: Sequence[float]) -> str:
    first, last = _ends(values)
    return (
        f"{first.mean():.3g} on average over the first {len(first)} steps and {last.mean():.3g} over the last"
    )


def directions(case: Case) -> str | None:
    """Whether image and text vary together in as many directions as the size of the set allows."""
    if not (case.is_own and case.report["audit"]):
        return None
    ours, real = (case.report["audit"]["spectrum"][part] for part in ("set", "real"))
    possible = min(real["effective_rank"], max(ours["pairs"] - 1, 1))
    if ours["effective_rank"] >= FEWER_DIRECTIONS * possible:
        return ""
    return (
        f"Images and captions of {case.label} vary together in few directions: their cross-covariance has an effective "
        f"rank of {ours['effective_rank']:.1f}, that of the real data {real['effective_rank']:.1f}."
    )


def variety(case: Case) -> str | None:
    """Whether the images of the set lie as far apart as real ones, by CLIP."""
    found = case.report["audit"].get("map") if case.is_own else None
    if not found:
        return None
    ours, real = found["variance"]["set"], found["variance"]["real"]
    if ours >= NARROWER * real:
        return ""
    return (
        f"The images of {case.label} are less varied than real ones: the variance of their CLIP features is "
        f"{ours:.3f}, that of real images {real:.3f}."
    )


def saturation(case: Case) -> str | None:
    """Whether the images of the set are clipped at black or white more than real ones."""
    if not (case.is_own and case.report["audit"]):
        return None
    ours, real = (case.report["audit"]["saturation"][part] for part in ("set", "real"))
    if ours < MORE_SATURATED * real or ours - real < SATURATED_POINTS:
        return ""
    return (
        f"The images of {case.label} are over-exposed: {ours:.1f} % of their levels are 0 or 255, and {real:.1f} % of "
        "those of real images. Students then meet colours at test time that they were not trained on."
    )


def fit(case: Case) -> str | None:
    """Whether students end with another loss on this set than on the other one, where it is of one kind."""
    kinds = [case.report["sets"][name].get("loss") for name in (case.ours, case.theirs)]
    if case.tone != "below" or kinds[0] != kinds[1]:
        return None
    ends = [_last_loss(case.report["sets"][name]["loss_curve"]) for name in (case.ours, case.theirs)]
    if None in ends or min(ends) <= 0:  # type: ignore[type-var, operator]
        return None
    ours, theirs = ends
    loss = TASK_TEXTS[case.report["task"]]["loss"]
    if abs(log2(ours / theirs)) < log2(OTHER_LOSS):  # type: ignore[operator]
        return ""
    if ours > theirs:  # type: ignore[operator]
        return (
            f"Students do not fit {case.label} as well as {case.other}: their {loss} ends at {ours:.2f} instead of "
            f"{theirs:.2f}, so its targets are harder to tell from its images."
        )
    return (
        f"Students fit {case.label} more easily than {case.other}: their {loss} ends at {ours:.2f} instead of "
        f"{theirs:.2f}. They know the set by heart, and it teaches them less about other images."
    )


def _last_loss(curve: Sequence[float | None]) -> float | None:
    known = [value for value in curve if value is not None]
    return float(np.mean(known[-max(ceil(WINDOW * len(known)), 1) :])) if known else None


def learning_rate(case: Case) -> str | None:
    """Whether the learning rate of the set lies at the end of its grid and that of the other set does not."""
    ours, theirs = (case.report["sets"][name] for name in (case.ours, case.theirs))
    if case.tone == "above" or len(ours["on_val"]) < 2:
        return None
    rates = sorted(float(rate) for rate in ours["on_val"])
    ends = (rates[0], rates[-1])
    if ours["learning_rate"] not in ends or theirs["learning_rate"] == ours["learning_rate"]:
        return ""
    place = "smallest" if ours["learning_rate"] == rates[0] else "largest"
    return (
        f"The learning rate of {case.label}, {ours['learning_rate']:g}, is the {place} that was tried, and another one "
        f"than that of {case.other}; a wider grid (learning_rates) may suit it better."
    )


CHECKS: dict[str, Callable[[Case], str | None]] = {
    "the distance of the students from chance": chance_level,
    "the size of the difference beside its spread": uncertainty,
    "the number of students": single_students,
    "the number of images for each class": classes,
    "the size of the sets": size,
    "how far drawn images fit their captions": drawings,
    "the losses of the distillation": losses,
    "the directions in which images and captions vary together": directions,
    "the variety of the images": variety,
    "the exposure of the images": saturation,
    "how easily students fit the set": fit,
    "the learning rate of the students": learning_rate,
}
"""Checks by what they look at, in the order in which reasons are told."""
