"""Mathematics imports no Ray, and settings import neither Ray nor torch (so that --help answers at once)."""

import pkgutil
import subprocess
import sys

import pytest

import mmdd_ray.models

LIGHT = ["mmdd_ray.config", "mmdd_ray.data.shapes", "mmdd_ray.check"]
ARITHMETIC = [
    "mmdd_ray.coresets",
    "mmdd_ray.matching.objective",
    "mmdd_ray.matching.training",
    "mmdd_ray.data.learnt",
    "mmdd_ray.diffusion.objective",
    "mmdd_ray.diffusion.training",
    "mmdd_ray.edge.choose",
    "mmdd_ray.edge.losses",
    "mmdd_ray.edge.objective",
    "mmdd_ray.edge.selection",
    "mmdd_ray.evaluate.agreement",
    "mmdd_ray.evaluate.classify",
    "mmdd_ray.evaluate.labelled",
    "mmdd_ray.evaluate.metrics",
    "mmdd_ray.evaluate.pairs",
    "mmdd_ray.evaluate.retrieval",
    "mmdd_ray.evaluate.train",
    "mmdd_ray.evaluate.verdict",
    "mmdd_ray.features.agreement",
    "mmdd_ray.features.moments",
    "mmdd_ray.vlcp.prototypes",
    *(f"mmdd_ray.models.{module.name}" for module in pkgutil.iter_modules(mmdd_ray.models.__path__)),
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
    assert (
        brought_in(
            [
                "mmdd_ray.edge.distill",
                "mmdd_ray.covmatch.stages",
                "mmdd_ray.vlcp.stages",
                "mmdd_ray.evaluate.distilled_set",
            ],
            ["torch", "sklearn"],
        )
        == []
    )


def test_arithmetic_imports_no_ray():
    assert brought_in(ARITHMETIC, ["ray"]) == []


def test_the_probe_sees_what_is_imported():
    assert brought_in(["mmdd_ray.features.moments"], ["numpy", "ray"]) == ["mmdd_ray.features.moments: numpy"]
