"""The rates of CovMatch on Flickr8k are chosen on photographs that nothing is reported on."""

import sys
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_ind

from mmdd_ray.engine.run_dir import StageDir
from mmdd_ray.evaluation.spread import spread
from mmdd_ray.storage.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import flickr8k  # benchmarks are scripts, which lie beside each other


def test_the_rates_of_the_best_trial_on_the_validation_photographs_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = flickr8k.settings_of(flickr8k.Flickr8k(tmp_path, tmp_path), 500)
    assert settings.evaluation.val != settings.evaluation.test
    trials = {
        flickr8k.Arm(500, flickr8k.TRIED_SEED, name): StageDir(name, Store(str(tmp_path / name)), name)
        for name in flickr8k.TRIALS
    }
    assert len(trials) == len({str(one.settings(settings).match) for one in trials}) == 4
    names = [arm.set for arm in trials]

    def compared(sets: Any, val: Any, test: Any, *_: Any) -> dict[str, Any]:
        assert (val, test) == ("val", "val")
        recalls = dict(zip(sets, (7.0, 9.0, 8.0, 6.0), strict=True))
        return {"sets": {name: {"metrics": {"mean_recall": {"mean": recalls[name]}}} for name in sets}}

    monkeypatch.setattr(flickr8k, "compare", compared)
    monkeypatch.setattr(flickr8k, "held_out_sets", lambda *_: ({"val": "val", "test": "test"}, None))
    monkeypatch.setattr(flickr8k.stages, "samples", lambda stage, _: (None, stage.name))
    stage = StageDir("rates", Store(str(tmp_path / "rates")), "rates")
    assert flickr8k.choose_rates(stage, trials, settings).outputs == [flickr8k.TRIED]
    chosen = flickr8k.with_rates(settings, stage).match
    assert (chosen.pixel_rate, chosen.token_rate) == (0.02, 0.01)
    assert names[1] == "covmatch-500-rates-0.02-0.01"
    assert flickr8k.about_rates(stage) == (
        "Its rates are 0.02 for pixels and 0.01 for tokens, which had a mean recall of 9.0 on the photographs that "
        "choose; the other trials: rates 0.02 0.002 7.0, rates 0.1 0.002 8.0, rates 0.1 0.01 6.0."
    )


def test_draws_of_other_seeds_are_not_paired() -> None:
    learnt, drawn, once = (
        [[8.0, 8.2], [7.4, 7.5], [7.9, 8.1]],
        [[3.5, 3.3], [3.0, 3.2], [2.9, 3.2]],
        [2.8, 3.1, 2.9],
    )
    scores = {"random-100": spread(drawn), "herding-100": spread([once]), "covmatch-100": spread(learnt)}
    sets = {name: {"metrics": {"mean_recall": one}} for name, one in scores.items()}
    told = flickr8k.beside({"sets": sets}, "covmatch-100")
    means = [[sum(own) / 2 for own in draws] for draws in (learnt, drawn)]
    low, high = ttest_ind(*means, equal_var=False).confidence_interval()
    assert f"+4.7 (+{low:.1f} to +{high:.1f}) to random-100, over 3 draws" in told
    low, high = ttest_ind(means[0], once, equal_var=False).confidence_interval()
    assert f"(+{low:.1f} to +{high:.1f}) to herding-100, over 3 draws." in told
