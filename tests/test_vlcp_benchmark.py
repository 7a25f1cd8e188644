"""VLCP's benchmark on photographs, with the models of the zoo: each draw of each set is judged under each protocol."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mmdd_ray.models.zoo import resolve

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import vlcp_arms  # benchmarks are scripts, which lie beside each other
import vlcp_tiny_imagenet


@pytest.mark.real
@pytest.mark.long
@pytest.mark.job
@pytest.mark.timeout(1200)
def test_all_draws_of_all_sets_are_judged_under_each_protocol(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlcp_tiny_imagenet, "HELD_OUT", 440)  # which leaves sixty images of each class
    for name, model in (("clip", "tiny-clip"), ("sd", "tiny-sd"), ("captioner", "tiny-captioner")):
        (tmp_path / name).symlink_to(resolve(model))
    asked = vlcp_tiny_imagenet.TinyImageNet(
        real_data / "tiny-imagenet32", tmp_path, tmp_path / "out", tmp_path, images_per_class=1, finetune_steps=2,
        classifier_steps=2, teacher_steps=100, seeds=2, draws=2, protocols=("equal-budget", "soft-label"),
    )  # fmt: skip
    assert vlcp_tiny_imagenet.models_of(asked).image_px == 32
    equal = vlcp_tiny_imagenet.measure(asked)
    (soft,) = equal["others"]
    drawn = [*vlcp_arms.ARMS, vlcp_arms.AS_IS]
    assert [*equal["sets"]] == [*drawn, "random", "herding", "k-center", "full"]
    assert [*soft["sets"]] == [name for name in equal["sets"] if name != "full"]
    for panel in (equal, soft):
        for name, one in panel["sets"].items():
            assert one["draws"] == (1 if name in ("herding", "full") else 2)
            assert len(set(one["fingerprints"])) == one["draws"]
    shown = vlcp_tiny_imagenet.table(soft)
    assert shown.count("\n") == 2 + len(soft["sets"])
    assert "best look" in shown
    assert "best look" not in vlcp_tiny_imagenet.table(equal)

    more = vlcp_tiny_imagenet.measure(replace(asked, draws=3))
    assert more["sets"]["both"]["draws"] == more["others"][0]["sets"]["random"]["draws"] == 3
    assert more["sets"]["both"]["fingerprints"][:2] == equal["sets"]["both"]["fingerprints"]
