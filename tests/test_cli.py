"""The command line of the jobs: presets, help, exit statuses, and the progress line."""

import os
import pty
import subprocess
import sys
import termios
import time
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mmdd_ray.cli import main, parse
from mmdd_ray.config import Data, Evaluation, Run
from mmdd_ray.engine.progress import progress
from mmdd_ray.errors import StorageError, UserError


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Fine-tuning of the generator."""

    steps: int = 100
    """Optimiser steps."""
    learning_rate: float = 1e-3
    """Peak learning rate."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Distils a toy."""

    run: Run = field(default_factory=Run)
    finetune: Finetune = field(default_factory=Finetune)
    captioner: Finetune | None = field(default_factory=Finetune)


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Distils data."""

    data: Data
    evaluation: Evaluation


def local() -> Settings:
    """Two minutes on a laptop."""
    return Settings()


def cc3m() -> Settings:
    """Three million pairs.

    On a cluster.
    """
    return replace(local(), finetune=Finetune(steps=9000))


PRESETS = {"local": local, "cc3m": cc3m}

JOB = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_cli
from mmdd_ray.cli import main, parse
def job():
    name, settings = parse("toy", test_cli.PRESETS)
    print(name, settings.finetune.steps)
sys.exit(main(job))
"""


def run_job(*arguments):
    return subprocess.run(
        [sys.executable, "-c", JOB, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_the_first_preset_is_the_default():
    assert parse("toy", PRESETS, []) == ("local", local())
    assert parse("toy", PRESETS, ["--run.seed", "3"]) == ("local", replace(local(), run=Run(seed=3)))


def test_several_sources_are_one_setting():
    presets = {"local": lambda: Evaluated(data=Data(uri="x"), evaluation=Evaluation(val="v", test="t"))}
    arguments = ["--data.uri", "a/0.tar", "b/{0..1}.tar", "c/", "--data.limit", "3"]
    arguments += ["--evaluation.test", "d", "e", "--evaluation.val", "f"]
    settings = parse("toy", presets, arguments)[1]
    assert settings.data == Data(uri="a/0.tar::b/{0..1}.tar::c/", limit=3)
    assert (settings.evaluation.test, settings.evaluation.val) == ("d::e", "f")
    assert parse("toy", presets, ["--data.uri=a", "b"])[1].data.uri == "a::b"
    classes = parse("toy", presets, ["--evaluation.zero-shot", "a", "b"])[1].evaluation.zero_shot
    assert classes == "a::b"


def test_several_values_are_not_given_one_by_one():
    presets = {"local": lambda: Evaluated(data=Data(uri="x"), evaluation=Evaluation(val="v", test="t"))}
    for name in ("evaluation.baselines", "data.uri"):
        with pytest.raises(UserError, match=f"--{name} stands 2 times.* as in --{name} A B"):
            parse("toy", presets, [f"--{name}", "random", f"--{name}=herding"])
    assert parse("toy", presets, ["--data.limit", "3", "--data.limit", "4"])[1].data.limit == 4


def test_a_short_option_is_no_source():
    @dataclass(frozen=True, kw_only=True)
    class Logged:
        """Distils data."""

        data: Data
        run: Run

    presets = {"local": lambda: Logged(data=Data(uri="x"), run=Run())}
    settings = parse("toy", presets, ["--data.uri", "a", "b", "-v"])[1]
    assert settings == Logged(data=Data(uri="a::b"), run=Run(verbose=True))
    assert not parse("toy", presets, [])[1].run.verbose


def test_a_pager_that_is_closed_ends_without_a_word():
    job = "import sys; from mmdd_ray.cli import main; sys.exit(main(lambda: print('x' * 10**6)))"
    command = f'"{sys.executable}" -c "{job}" | head -c 1'
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert (shown.stdout, shown.stderr) == ("x", "")


def test_a_preset_is_changed_field_by_field():
    name, settings = parse("toy", PRESETS, ["cc3m", "--finetune.learning_rate", "0.5", "--run.num-cpus", "2"])
    assert name == "cc3m"
    assert settings == replace(cc3m(), run=Run(num_cpus=2), finetune=Finetune(steps=9000, learning_rate=0.5))


def test_an_optional_section_stays_as_the_preset_has_it():
    settings = parse("toy", PRESETS, ["--captioner.steps", "5"])[1]
    assert settings.captioner == Finetune(steps=5)


def test_help_shows_presets_settings_meanings_and_the_presets_own_defaults():
    shown = run_job("cc3m", "--help_all")
    assert shown.returncode == 0
    for part in (
        "Distils a toy.",
        "Two minutes on a laptop.",
        "Three million pairs.",
        "--finetune.steps",
        "9000",
    ):
        assert part in shown.stdout
    assert "Optimiser steps." in shown.stdout
    assert "On a cluster" not in shown.stdout


def test_help_imports_neither_torch_nor_ray():
    script = (
        "import sys\n"
        "from mmdd_ray.cli import parse; from mmdd_ray.config import Run\n"
        "try: parse('toy', {'local': Run}, ['--help_all'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('ray', 'torch') if name in sys.modules], file=sys.stderr)\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stderr.strip() == "[]"
    assert "--object_store_mib" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 0, "local 100\n"),
        (["cc3m"], 0, "cc3m 9000\n"),
        (["flickr"], 2, "error: unknown preset flickr; choose one of local, cc3m\n"),
        (["--finetune.stepz", "1"], 2, "--finetune.steps"),
        (["--finetune.steps", "many"], 2, "invalid literal for int"),
    ],
)
def test_exit_status_and_message(arguments, status, says):
    done = run_job(*arguments)
    assert done.returncode == status
    assert says in (done.stderr if status else done.stdout)
    assert "Traceback" not in done.stderr


def raising(error):
    def job():
        raise error

    return job


def test_a_job_that_ends_gives_its_own_status():
    assert main(lambda: None) == 0
    assert main(lambda: 3) == 3


def as_it_is(error):
    return error


def in_a_task(error):
    from ray.exceptions import RayTaskError

    return RayTaskError("f", "a long traceback", error)


def from_ray_get(error):
    return in_a_task(error).as_instanceof_cause()


def in_a_nested_task(error):
    return in_a_task(in_a_task(error))


def in_ray_train(error):
    from ray.train import WorkerGroupError

    return WorkerGroupError("rank 0: traceback", {0: error})


def in_a_worker_of_ray_train(error):
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    return in_ray_train(UserExceptionWithTraceback(error, "a long traceback"))


WRAPS = [as_it_is, in_a_task, from_ray_get, in_a_nested_task, in_ray_train, in_a_worker_of_ray_train]


@pytest.mark.parametrize("wrap", WRAPS)
def test_what_the_user_got_wrong_is_one_line(wrap, capsys):
    mistake = UserError("data.uri=s3://me:pw@b/x holds no shards; set data.uri")
    assert main(raising(wrap(mistake))) == 2
    assert capsys.readouterr().err == "error: data.uri=s3://[redacted]@b/x holds no shards; set data.uri\n"


def test_the_traceback_of_a_mistake_is_shown_on_request(capsys, monkeypatch):
    monkeypatch.setenv("MMDD_RAY_TRACEBACK", "1")
    assert main(raising(UserError("bad"))) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("error: bad\n")


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("error", [RuntimeError("at s3://me:pw@b/x"), ValueError("at s3://me:pw@b/x")])
def test_what_we_got_wrong_keeps_its_traceback(wrap, error, capsys):
    assert main(raising(wrap(error))) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "\nerror: " not in shown
    assert "me:pw" not in shown


@pytest.mark.parametrize("wrap", WRAPS)
def test_storage_that_fails_ray_train_is_one_line(wrap, capsys):
    pyarrow = OSError(
        "When uploading part for key 'run/a' in bucket 'b': AWS Error SLOW_DOWN (HTTP status 503)."
    )
    assert main(raising(wrap(pyarrow))) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: storage failed: When uploading part")
    assert shown.endswith("(HTTP status 503); run the same command again to resume\n")


@pytest.mark.parametrize("wrap", WRAPS)
def test_storage_that_failed_is_one_line_and_no_mistake_of_the_user(wrap, capsys):
    assert main(raising(wrap(StorageError("storage failed while reading s3://b/x")))) == 1
    shown = capsys.readouterr().err
    assert shown == "error: storage failed while reading s3://b/x; run the same command again to resume\n"


@pytest.mark.parametrize("wrap", [as_it_is, in_ray_train])
@pytest.mark.parametrize("name", ["ActorDiedError", "WorkerCrashedError", "OutOfMemoryError"])
def test_what_the_cluster_lost_is_one_line(wrap, name, capsys):
    import ray.exceptions

    kind = getattr(ray.exceptions, name)
    assert main(raising(wrap(kind("out of memory") if name == "OutOfMemoryError" else kind()))) == 1
    shown = capsys.readouterr().err
    said = {"OutOfMemoryError": "a machine ran out of memory, again and again; lower the batches"}
    assert shown.startswith(f"error: {said.get(name, f'the cluster lost what was needed ({name}: ')}")
    assert shown.endswith("; run the same command again to resume\n")
    assert shown.count("\n") == 1


def test_a_bug_in_the_constructor_of_an_actor_keeps_its_traceback(capsys):
    from ray.exceptions import ActorDiedError

    assert main(raising(ActorDiedError(in_a_task(KeyError("steps"))))) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "status"), [(UserError, 2), (StorageError, 1)])
def test_a_mistake_in_the_constructor_of_an_actor_is_one_line(kind, status, capsys):
    from ray.exceptions import ActorDiedError, RayTaskError

    try:
        raise kind("captions.model=x cannot be loaded")
    except kind as error:
        raised = RayTaskError("__init__", traceback.format_exc(), error)
    assert main(raising(ActorDiedError(raised))) == status
    assert capsys.readouterr().err.startswith("error: captions.model=x cannot be loaded")


def test_ctrl_c_says_how_to_go_on(capsys):
    assert main(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to resume\n"


def test_progress_in_a_log_file_is_a_line_now_and_then(capsys, monkeypatch):
    monkeypatch.setattr("mmdd_ray.engine.progress.LOG_EVERY_S", 0.2)
    with progress("features", total=2000) as bar:
        for _ in range(20):
            time.sleep(0.05)
            bar.note(loss=0.25)
            bar.update(100)
    lines = capsys.readouterr().err.split("\n")
    assert "\r" not in "".join(lines)
    assert 2 <= len(lines) - 1 <= 5
    assert lines[0].startswith("features     ")
    assert "/2,000 rows   " in lines[0]
    assert lines[0].endswith("   loss 0.25")


def test_a_count_beyond_an_estimated_total_stands_alone() -> None:
    with progress("features", total=62) as bar:
        bar.update(62)
        assert "62/62 rows" in str(bar)
        bar.update(2)
        assert "64 rows" in str(bar)
        assert "/62" not in str(bar)
        assert "eta" not in str(bar)


def test_a_short_stage_leaves_a_log_file_alone(capsys):
    with progress("features", total=2000) as bar:
        bar.update(2000)
    assert capsys.readouterr().err == ""


def test_what_an_earlier_attempt_did_has_no_part_in_the_rate(monkeypatch):
    clock = iter((0.0, 10.0))  # read at the first update, and when the line ends
    monkeypatch.setattr("mmdd_ray.engine.progress.monotonic", lambda: next(clock))
    progress.paces.clear()
    with progress("students", total=1000) as bar:
        bar.resume(500)
        bar.update(1)
        bar.resume(400)
        bar.update(10)
    assert progress.paces == [(11, 1.0)]


def test_progress_on_a_terminal_rewrites_one_line_and_takes_it_away(monkeypatch):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr("mmdd_ray.engine.progress.REDRAW_EVERY_S", 0.01)
        with progress("features", total=40, unit="images") as bar:
            for _ in range(4):
                time.sleep(0.02)
                bar.update(10)
        terminal.flush()
        shown = ""
        while not shown.endswith(" \r"):  # the line is blanked at last, or this test times out
            shown += os.read(ours, 10_000).decode()
    os.close(ours)
    assert "\n" not in shown
    assert "\rfeatures     20/40 images   " in shown
    assert "images/s   eta " in shown
