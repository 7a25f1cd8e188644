"""Mathematics imports no Ray, and settings import neither Ray nor torch (so that --help answers at once)."""

import pkgutil
import subprocess
import sys

import pytest

import mmdd_ray.methods
import mmdd_ray.models

LIGHT = ["mmdd_ray.config", "mmdd_ray.data.shapes", "mmdd_ray.planning.preflight", "mmdd_ray.methods"]
ARITHMETIC = [
    "mmdd_ray.features.coresets",
    "mmdd_ray.features.row_passes",
    "mmdd_ray.matching.objective",
    "mmdd_ray.matching.real_batches",
    "mmdd_ray.matching.training",
    "mmdd_ray.distilled.learnt",
    "mmdd_ray.diffusion.objective",
    "mmdd_ray.diffusion.synthesize",  # for what an actor does
    "mmdd_ray.diffusion.training",
    "mmdd_ray.methods.edge.choose",
    "mmdd_ray.methods.edge.losses",
    "mmdd_ray.methods.edge.objective",
    "mmdd_ray.methods.edge.selection",
    "mmdd_ray.evaluation.agreement",
    "mmdd_ray.evaluation.beside_runs",
    "mmdd_ray.evaluation.report.comparison",
    "mmdd_ray.evaluation.copies",
    "mmdd_ray.evaluation.copies_sheet",
    "mmdd_ray.evaluation.feature_map",
    "mmdd_ray.evaluation.learnt_texts",
    "mmdd_ray.evaluation.spectrum",
    "mmdd_ray.evaluation.tasks.classifiers",
    "mmdd_ray.evaluation.labelled",
    "mmdd_ray.evaluation.metrics",
    "mmdd_ray.evaluation.nested",
    "mmdd_ray.evaluation.pairs",
    "mmdd_ray.evaluation.panel",
    "mmdd_ray.evaluation.probes.score",
    "mmdd_ray.evaluation.retrieval",
    "mmdd_ray.evaluation.tasks.students",
    "mmdd_ray.evaluation.report.outcome",
    "mmdd_ray.evaluation.report.reasons",
    "mmdd_ray.evaluation.report.standing",
    "mmdd_ray.features.agreement",
    "mmdd_ray.features.moments",
    "mmdd_ray.methods.vlcp.prototypes",
    "mmdd_ray.matching.initial_pairs",
    "mmdd_ray.methods.trajectory.experts",
    "mmdd_ray.methods.trajectory.objective",
    "mmdd_ray.methods.trajectory.training",
    *(module.name for module in pkgutil.walk_packages(mmdd_ray.models.__path__, "mmdd_ray.models.")),
]

# Prints "module: package" for each forbidden package that importing the module brought in.
PROBE = """
import importlib, sys
modules, forbidden = sys.argv[1].split(","), sys.argv[2].split(",")
for module in modules:
    importlib.import_module(module)
    for package in forbidden:
        if package in sys.modules:
            print(f"{module}: {package}")
"""


def brought_in(modules: list[str], forbidden: list[str]) -> list[str]:
    """What a fresh interpreter finds in sys.modules after each import, one process for all modules."""
    probe = subprocess.run(
        [sys.executable, "-c", PROBE, ",".join(modules), ",".join(forbidden)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert probe.returncode == 0, probe.stderr
    return probe.stdout.splitlines()


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_neither_ray_nor_torch(module):
    assert brought_in([module], ["ray", "torch"]) == []


def test_a_driver_imports_no_torch():
    methods = pkgutil.walk_packages(mmdd_ray.methods.__path__, "mmdd_ray.methods.")
    stages = [module.name for module in methods if module.name.endswith(".stages")]
    assert len(stages) > 3
    assert brought_in(stages, ["torch", "sklearn"]) == []


def test_arithmetic_imports_no_ray():
    assert brought_in(ARITHMETIC, ["ray"]) == []


def test_the_probe_sees_what_is_imported():
    assert brought_in(["mmdd_ray.features.moments"], ["numpy", "ray"]) == ["mmdd_ray.features.moments: numpy"]
