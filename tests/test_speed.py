"""The speed benchmarks run at their smallest size, and record what they find."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import speed  # benchmarks are scripts, which lie beside each other

BENCHMARKS = Path(speed.__file__).parent
QUICK = ("moments", "coresets")
SLOW = ("synthesis", "finetune", "covmatch", "features", "growth", "start")


def recorded(stage: str, folder: Path) -> dict:
    """What a benchmark records at its smallest size."""
    command = [
        sys.executable,
        f"speed_{stage}.py",
        "--size",
        "tiny",
        "--repetitions",
        "2",
        "--out",
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=BENCHMARKS, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (file,) = folder.glob(f"{stage}-tiny_*.json")
    found = json.loads(file.read_text())
    for one in found["ratios"]:
        assert one["name"] in run.stdout
        assert all(ratio == ratio for ratio in one["ratios"])
    return found


@pytest.mark.job
@pytest.mark.parametrize("stage", QUICK)
def test_a_speed_benchmark_records_ratios_and_what_they_are_of(stage: str, tmp_path: Path) -> None:
    found = recorded(stage, tmp_path)
    assert found["size"] == "tiny"
    assert found["versions"]["torch"]
    assert any(one["target"] for one in found["ratios"])
    lines = speed.table(tmp_path).splitlines()
    assert len(lines) == 2 + len(found["ratios"])
    assert all(line.count("|") == 6 for line in lines)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", SLOW)
def test_a_speed_benchmark_of_whole_stages_records_its_ratios(stage: str, tmp_path: Path) -> None:
    assert recorded(stage, tmp_path)["ratios"]


@pytest.mark.job
def test_the_operations_of_a_large_run_are_counted_without_its_models() -> None:
    run = subprocess.run(
        [sys.executable, "operations.py"], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    stages = [line.split("|")[1].strip() for line in run.stdout.splitlines()[2:]]
    assert stages == ["features", "finetune", "finetune", "synthesize", "recaption", "evaluate", "all"]
    shares = [float(line.split("|")[4].rstrip("% ")) for line in run.stdout.splitlines()[2:-1]]
    assert sum(shares) == pytest.approx(100, abs=0.1)
    assert shares[1] > 50


def test_arms_take_turns_and_ratios_are_of_one_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    calls: list[str] = []
    seconds = speed.in_turns({name: lambda name=name: calls.append(name) for name in ("a", "b")}, 3)
    assert calls == ["a", "b"] * 4  # one round warms up
    assert [len(own) for own in seconds.values()] == [3, 3]
    ratio = speed.faster("b over a", {"a": [1.0, 2.0, 1.0], "b": [2.0, 8.0, 3.0]}, "a", "b", target=3)
    assert ratio.ratios == (2.0, 4.0, 3.0)
    assert ratio.middle == 3.0
    assert ratio.is_met
    assert "target 3: met" in str(ratio)
    less = speed.faster("b over a", {"a": [1.0], "b": [2.0]}, "a", "b", target=5, scale=2)
    assert less.ratios == (4.0,)
    assert "MISSED" in str(less)
