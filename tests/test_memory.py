"""Memory that is counted without a GPU: against what is known, and in the plan."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mmdd_ray.config import Data, Features, Plan, Students, Synthesis
from mmdd_ray.engine.cluster import Devices
from mmdd_ray.errors import UserError
from mmdd_ray.methods import METHODS
from mmdd_ray.methods.covmatch.presets import flickr30k
from mmdd_ray.methods.edge.presets import local as edge_local
from mmdd_ray.methods.execute import method_of
from mmdd_ray.methods.preset_parts import NFNET_AND_BERT
from mmdd_ray.planning import memory
from mmdd_ray.planning.costs import StageCost, counted_bytes
from mmdd_ray.planning.fit import check_fit, smallest_gpu_gib
from mmdd_ray.planning.plan import plan_run
from mmdd_ray.planning.show import render

MIB = 2**20
BOTH = replace(NFNET_AND_BERT, trained="both-encoders")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "FRAGMENTS", 1.0)
    monkeypatch.setattr(memory, "CONTEXT_BYTES", 0)


def test_what_is_alive_is_counted_from_its_beginning_to_its_end(exact: None) -> None:
    with memory._counting():
        layer = memory._module(lambda: nn.Linear(512, 512, bias=False))  # a MiB
        rows = torch.zeros(1024, 512)  # 2 MiB

        def step() -> None:
            first = layer(rows)  # 2 MiB
            second = first.relu()  # 2 MiB, which its gradient is made from
            del first
            second.sum().backward()  # 2 MiB for the gradient of first, and then one for that of the weight
            layer.weight.grad = None

        with torch.no_grad():
            still = memory._bytes_of([layer, rows], lambda: (layer(rows), None)[1])
        assert still == 5 * MIB
        assert memory._bytes_of([layer, rows], step) == pytest.approx(8 * MIB, abs=1024)


def test_students_of_the_published_models_take_what_was_measured_of_them() -> None:
    """46 GiB for four of both encoders on one card."""
    assert 4 * memory.student_bytes(BOTH) / 2**30 == pytest.approx(46, abs=4)
    frozen = memory.student_bytes(NFNET_AND_BERT)
    assert frozen < 0.7 * memory.student_bytes(BOTH)
    assert memory.student_bytes(replace(NFNET_AND_BERT, batch_pairs=64)) < 0.7 * frozen


def test_memory_of_every_stage_grows_with_its_batch() -> None:
    edge = edge_local()
    tuning = edge.finetune

    def tuned(batch: int, **changes: Any) -> int | None:
        return memory.finetune_bytes(replace(tuning, batch_pairs=batch, **changes), "tiny-clip")

    grown = [
        (memory.features_bytes(Features(chunk_pairs=n)) for n in (256, 1024)),
        (memory.student_bytes(Students(batch_pairs=n)) for n in (64, 256)),
        (memory.matching_bytes(replace(edge.refine, micro_batch=n), 100) for n in (64, 256)),
        (memory.matching_bytes(edge.refine, pairs) for pairs in (100, 1000)),
        (memory.drawing_bytes(Synthesis(batch_images=n), "tiny-sd", 32, "tiny-clip") for n in (50, 200)),
        (tuned(n) for n in (32, 128)),
    ]
    for small, large in grown:
        assert small is not None
        assert large is not None
        assert memory.CONTEXT_BYTES < small < large
    assert tuned(32, parameters="difffit") < tuned(32, parameters="full")
    assert memory.finetune_bytes(tuning, None) < tuned(32)


def test_what_is_not_known_is_not_counted() -> None:
    """Without a word to any hub."""
    assert memory.features_bytes(Features(clip="hf-hub:nobody/nothing")) is None
    assert memory.student_bytes(replace(NFNET_AND_BERT, text_model="nobody/nothing")) is None
    assert memory.student_bytes(replace(NFNET_AND_BERT, image_model="no_such_net")) is None
    assert memory.drawing_bytes(Synthesis(), "nobody/nothing", 512, None) is None
    assert memory.finetune_bytes(replace(edge_local().finetune, generator="nobody/nothing"), None) is None


def planned(gpu: str, share: float, **plan: Any) -> Any:
    preset = flickr30k()
    scenes = {"val": "shapes:8?seed=2", "test": "shapes:8?seed=3", "val_split": None, "test_split": None}
    settings = replace(
        preset,
        data=Data(uri="shapes:1000?seed=1"),
        evaluation=replace(preset.evaluation, gpus_per_student=share, **scenes),
        plan=Plan(**plan),
    )
    devices = Devices(cpus=64.0, gpus=16.0, gpu_types=(gpu,))
    return settings, plan_run(settings, method_of(settings), devices, METHODS)


def test_processes_that_do_not_fit_on_a_card_are_refused_with_the_share_that_would() -> None:
    settings, plan = planned("L40S", 0.25)
    assert "about 13.0 GB" in render(plan)
    with pytest.raises(
        UserError,
        match=r"evaluate does not fit: 4 processes at 0.25 of a GPU take 48\.\d GiB, but a GPU "
        r"has 44 GiB; give each 0.33 of a GPU, or lower its batches \(128 pairs\) in --evaluation",
    ):
        check_fit(settings, plan)
    check_fit(*planned("L40S", flickr30k().evaluation.gpus_per_student))
    check_fit(*planned("H100", 0.25))
    check_fit(*planned("a card of tomorrow", 0.25))
    with pytest.raises(
        UserError, match=r"evaluate does not fit: a process takes .* but a GPU has 8 GiB; lower its"
    ):
        check_fit(*planned("a card of tomorrow", 1.0, gpu_gib=8.0))


def test_processes_that_do_not_exist_take_nothing() -> None:
    settings, plan = planned("L4", 1.0)
    alone = next(one for one in plan.stages if one.cost.stage == "features")
    alone.peak_bytes, alone.gpus_each, alone.parallel = 8 * 2**30, 0.25, 1
    check_fit(settings, plan)
    alone.parallel = 3
    with pytest.raises(
        UserError, match=r"3 processes at 0.25 of a GPU take 24.0 GiB, but a GPU has 22 GiB; give each 0.5"
    ):
        check_fit(settings, plan)


@pytest.mark.parametrize(
    "features",
    [
        Features(clip="ViT-B-32/laion2b_s34b_b79k", image_px=256, chunk_pairs=8),  # resized for the encoder
        Features(clip="xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k"),  # whose text encoder is on the hub
    ],
)
def test_no_image_side_and_no_text_encoder_of_the_hub_ends_the_count(features: Features) -> None:
    found = memory.features_bytes(features)
    assert (found is None) == features.clip.startswith("xlm")


def test_a_count_that_fails_ends_no_run() -> None:
    students = replace(NFNET_AND_BERT, image_model="vit_tiny_patch16_224", image_px=96)  # of 224 px alone
    with pytest.raises(AssertionError):
        memory.student_bytes(students)
    cost = StageCost(units=1, unit="", uses="", section="", memory=lambda: memory.student_bytes(students))
    assert counted_bytes(cost) is None


def test_workers_of_a_training_hold_what_they_exchange() -> None:
    whole = replace(edge_local().finetune, parameters="full", batch_pairs=32)
    alone, two = (memory.finetune_bytes(replace(whole, workers=n, batch_pairs=32 * n), None) for n in (1, 2))
    assert alone is not None
    assert two is not None
    assert two - alone == pytest.approx(4 * 1.7e6, rel=0.2)  # the weights of tiny-sd's U-Net


def test_the_smallest_card_of_a_cluster_counts() -> None:
    assert smallest_gpu_gib(("A100", "A100-80G")) == 79
    assert smallest_gpu_gib(("H100", "L4")) == smallest_gpu_gib(("L4",)) == 22
    assert smallest_gpu_gib(()) is smallest_gpu_gib(("H100", "new")) is None


def test_a_plan_without_gpus_counts_nothing() -> None:
    code = (
        "from dataclasses import replace; from mmdd_ray.config import Plan\n"
        "from mmdd_ray.methods.edge.presets import local; from mmdd_ray.methods import METHODS\n"
        "from mmdd_ray.planning.plan import show_plan\n"
        "settings = replace(local(), plan=Plan(gpus=0)); show_plan(settings, METHODS['edge_cc3m'], METHODS)\n"
        "from mmdd_ray.planning import memory; assert not memory._alive_class.cache_info().currsize"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
