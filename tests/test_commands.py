"""The console script: its commands, their help, completion, and what it says of mistakes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmdd_ray
from mmdd_ray.cli.commands import commands, main
from mmdd_ray.methods import METHODS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def mmdd(capsys, monkeypatch):
    """Runs `mmdd` with these arguments; gives its exit status, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mmdd", *arguments])
        try:
            status = main()
        except SystemExit as stop:  # of tyro's help
            status = stop.code or 0
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return call


def completed(words: str) -> list[str]:
    """What bash would offer for the last of the words."""
    environment = os.environ | {
        "_MMDD_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    script = "from mmdd_ray.cli.commands import script; script()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_every_job_and_tool_has_a_command_and_a_file():
    names = set(commands().commands)
    assert {method.name for method in METHODS.values()} <= names
    assert {"plan", "compare", "status", "verify", "push", "export", "student", "completion"} <= names
    for job in (*METHODS, "compare", "verify"):
        assert (ROOT / "jobs" / f"{job}.py").exists()


def test_help_names_every_command_and_the_version_is_the_packages(mmdd):
    status, shown, _ = mmdd("--help")
    assert status == 0
    assert all(name in shown for name in commands().commands)
    assert mmdd("--version")[:2] == (0, f"mmdd-ray {mmdd_ray.__version__}\n")


@pytest.mark.parametrize(
    "name", [*(method.name for method in METHODS.values()), "compare", "verify", "push", "export", "student"]
)
def test_every_command_has_help(name, mmdd):
    status, shown, _ = mmdd(name, "--help")
    assert status == 0
    assert f"usage: mmdd {name}" in shown


def test_help_is_short_and_help_all_is_whole(mmdd):
    short, whole = mmdd("edge", "--help")[1], mmdd("edge", "--help_all")[1]
    assert "--synthesis.pairs" in short
    assert "--synthesis.batch_images" not in short
    assert "--synthesis.batch_images" in whole
    assert "settings follow; --help_all shows the others, too" in " ".join(short.split())
    assert len(short) < len(whole) / 2


def test_a_setting_that_short_help_leaves_out_is_taken_all_the_same(mmdd):
    status, shown, _ = mmdd("edge", "--synthesis.batch_images", "7", "--print_config")
    assert status == 0
    assert "batch_images: 7" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["egde"], "egde"),
        (["edge", "lokal"], "error: unknown preset lokal; did you mean local? choose one of local, cc3m\n"),
        (["edge", "--finetune.stepz", "1"], "--finetune.steps"),
        (["plan"], "Name a job first: mmdd plan edge|"),
        (
            ["plan", "covmach"],
            "error: unknown job covmach; did you mean covmatch? choose one of edge, covmatch,",
        ),
        (["completion"], "mmdd completion bash|zsh|fish"),
        (["completion", "tcsh"], "mmdd completion bash|zsh|fish"),
        (["verify"], "SET"),
    ],
)
def test_mistakes_have_status_2_and_no_traceback(arguments, says, mmdd):
    status, _, shown = mmdd(*arguments)
    assert status == 2
    assert says in shown
    assert "Traceback" not in shown


def test_plan_is_the_job_with_its_plan(mmdd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = ("local", "--plan.cpus", "2", "--plan.gpus", "0")
    planned = mmdd("plan", "edge", *arguments)
    assert planned[0] == 0
    assert "students" in planned[1]
    assert planned == mmdd("edge", *arguments, "--plan")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["plan", "completion"])
def test_commands_of_one_argument_say_how_they_are_used(name, mmdd):
    assert mmdd(name, "--help")[0] == 0


def test_the_end_of_a_file_is_no_ctrl_c(mmdd, monkeypatch):
    def broken(*_):
        raise EOFError("cut off")

    monkeypatch.setattr("mmdd_ray.cli.commands.start", broken)
    status, _, shown = mmdd("edge")
    assert status == 1
    assert "EOFError: cut off" in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_there(shell, mmdd):
    status, shown, _ = mmdd("completion", shell)
    assert status == 0
    assert "_MMDD_COMPLETE" in shown


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("mmdd cov", ["covmatch"]),
        ("mmdd edge ", ["local", "cc3m"]),
        ("mmdd edge cc3m --finetune.ste", ["--finetune.steps"]),
        ("mmdd edge --print", ["--print_config"]),
        ("mmdd edge local --finetune.parameters ", ["difffit", "lora", "full"]),
        ("mmdd edge local --evaluation.baselines k", ["k-center"]),
        ("mmdd plan vl", ["vlcp"]),
        ("mmdd completion z", ["zsh"]),
    ],
)
def test_the_shell_offers_commands_presets_settings_and_choices(words, offered):
    assert completed(words) == offered


def test_help_starts_neither_torch_nor_ray():
    script = (
        "import sys; sys.argv = ['mmdd', '--help']\n"
        "from mmdd_ray.cli.commands import main; main()\n"
        "print([name for name in ('ray', 'torch') if name in sys.modules], file=sys.stderr)\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stderr.strip() == "[]"
