"""Commands that README and docs show run, or say what they need; files, settings and targets they name are there."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mmdd_ray.cli import parse
from mmdd_ray.cli.commands import commands as mmdd
from mmdd_ray.errors import UserError
from mmdd_ray.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("mmdd_ray/zoo/*.md")])
BLOCK = re.compile(r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
JOB = re.compile(r"(?:\S*/)?(?:python3? jobs/(\w+)\.py|mmdd (?:plan )?([a-z-]+))(?!\S) *(.*)")
BY_COMMAND = {method.name: job for job, method in METHODS.items()}


def commands(page: Path) -> Iterator[str]:
    """Commands of the page's shell blocks, with continued lines joined and without comments."""
    for language, _, block in BLOCK.findall(page.read_text()):
        if language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                if command := " ".join(shlex.split(line, comments=True, posix=False)):
                    yield command


def inline(page: Path) -> list[str]:
    """Inline code of a page."""
    return INLINE.findall(BLOCK.sub("", page.read_text()))


SHOWN = [(page, command) for page in PAGES for command in commands(page)]
JOBS = [
    (page, job, match[3])
    for page in PAGES
    for command in [*commands(page), *inline(page)]
    if (match := JOB.search(command)) and (job := BY_COMMAND.get(match[2] or "", match[1])) in METHODS
]
CONSOLE = [(page, command) for page, command in SHOWN if re.match(r"mmdd\b", command)]


def takes(job: str, arguments: str) -> None:
    """Parses the arguments of a job; those of a pattern are only checked for the preset."""
    words = shlex.split(arguments.rstrip("&").partition(" > ")[0])
    if words and words[0] in ("PRESET", "…"):
        words = words[1:]
    if "--config" in words:  # a file of the reader's
        place = words.index("--config")
        del words[place : place + 2]
    try:
        parse(job, METHODS[job].presets, [word for word in words if word != "…"])
    except (SystemExit, UserError) as stop:
        if getattr(stop, "code", stop):
            pytest.fail(f"{job} does not take {arguments}: {stop}")


@pytest.mark.parametrize(("page", "job", "arguments"), JOBS, ids=lambda one: str(one)[-60:])
def test_the_command_line_takes_the_commands_of_the_docs(page: Path, job: str, arguments: str) -> None:
    takes(job, arguments)


@pytest.mark.parametrize(("page", "command"), CONSOLE, ids=lambda one: str(one)[-60:])
def test_commands_of_the_console_script_are_there(page: Path, command: str) -> None:
    word = command.split()[1]
    assert word in mmdd().commands or word in ("--version", "--help"), f"{page.name}: {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_in_running_text_are_those_of_some_job(page: Path) -> None:
    for code in inline(page):
        words = shlex.split(code) if code.startswith("--") and "*" not in code else []
        if words and "." in words[0]:
            assert any(_takes(job, words) for job in METHODS), f"{page.name}: no job takes {code}"


def _takes(job: str, words: list[str]) -> bool:
    """Whether a job has the setting, and takes the value if there is one."""
    section, _, field = words[0].removeprefix("--").partition(".")
    default = next(iter(METHODS[job].presets.values()))()
    if len(words) == 1 and hasattr(getattr(default, section, None), field):
        return True
    values = ["1" if word in ("URI", "RUN", "K", "FOLDER") else word for word in words]
    try:
        return bool(parse(job, METHODS[job].presets, values))
    except (SystemExit, UserError):
        return False


@pytest.mark.parametrize(("page", "command"), SHOWN, ids=lambda one: str(one)[-60:])
def test_files_and_targets_of_the_commands_are_there(page: Path, command: str) -> None:
    for name in re.findall(r"(?<![\w/:-])(?:jobs|benchmarks|docs|tests)/[\w./-]+", command):
        assert (ROOT / name).exists(), f"{page.name}: {name}"
    if target := re.match(r"make ([\w-]+)", command):
        assert re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_of_their_language(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    assert not re.search(r"^ {4}(make|python|ray|mmdd) ", BLOCK.sub("", text), re.MULTILINE)
    for language, title, block in BLOCK.findall(text):
        assert not title or title.startswith(("Needs ", "From "))
        assert language in ("", "sh", "python", "json", "yaml")
        if language == "sh":
            parsed = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
            assert parsed.returncode == 0, f"{page.name}: {parsed.stderr}"
        elif language == "python":
            compile(block, page.name, "exec")
        elif language == "json":
            json.loads(block)
        elif language == "yaml":
            (tmp_path / "block.yaml").write_text(block)
            assert any(_takes(job, ["--config", str(tmp_path / "block.yaml")]) for job in METHODS), block


RAY = [(page, shlex.split(command)[1:]) for page, command in SHOWN if re.match(r"ray \w", command)]


@pytest.mark.parametrize(("page", "arguments"), RAY, ids=lambda one: str(one)[-60:])
def test_ray_takes_its_commands(page: Path, arguments: list[str]) -> None:
    from ray.scripts.scripts import cli

    command = cli
    words = [word for word in arguments if word != "&"]
    while isinstance(command, click.Group):
        command = command.commands[words.pop(0)]
    command.make_context(page.name, words)  # click's own sentence, where it does not


def test_ray_in_the_docs_is_the_ray_of_the_lock() -> None:
    locked = re.search(r"^ray==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked
    shown = {version for page in PAGES for version in re.findall(r"ray\[\w+\]==([\d.]+)", page.read_text())}
    assert shown == {locked[1]}


MESSAGES = re.compile(r"^\| `([^|]+)`.*? \|", re.MULTILINE)
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|…|=[^ ]*|\b\d+\b|'X'|\bis\b|data\.uri|evaluation\.test")
OF_RAY = "Authentication required"


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "mmdd_ray").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)  # of literals over several lines
    page = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Results")[0]
    messages = [one for row in MESSAGES.findall(page) for one in row.split("`, `")]
    assert len(messages) >= 20
    for message in messages:
        for part in PLACEHOLDER.split(message):
            words = part.strip(" ,;()`")
            assert len(words) < 8 or words in joined or words == OF_RAY, message


# A block of commands or Python has a title that says what it needs, or it runs as it stands


PHOTOS = """
from pathlib import Path
from mmdd_ray.data import shapes

splits = ("photos/train", 300, 1), ("photos/validation", 150, 2), ("photos/test", 150, 3)
for name, count, seed in (*splits, ("pictures", 600, 4), ("chosen", 20, 5)):
    folder = Path(name)
    folder.mkdir(parents=True)
    for number in range(count):
        scene = shapes.scene(number, seed=seed)
        scene.render(64).save(folder / f"{number:05}.jpg")
        (folder / f"{number:05}.txt").write_text(scene.captions()[0])
"""
AT_DESK = (
    "Needs a folder of photographs, and minutes on two cores",
    "Needs these folders of photographs, and minutes on two cores",
)
ON_OTHER_PAGES = ("README.md", "index.md", "methods")  # their runs are looked at and compared on others


def untitled(page: Path) -> list[tuple[str, str]]:
    """Language and text of the blocks that run: commands as they come, then the whole of the page's Python."""
    found = BLOCK.findall(page.read_text())
    blocks = [(language, text) for language, title, text in found if not title or title in AT_DESK]
    python = "\n".join(text for language, text in blocks if language == "python")
    return [block for block in blocks if block[0] == "sh"] + [("python", python)] * bool(python)


def in_reading_order(page: Path) -> tuple[int, Path]:
    names = (page.name, page.parent.name)
    places = [place for place, name in enumerate(ON_OTHER_PAGES) if name in names]
    return min(places, default=len(ON_OTHER_PAGES)), page


RUN = [page for page in sorted(PAGES, key=in_reading_order) if untitled(page)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader sits: the checkout's scripts, photos in splits, pictures without, and runs of the pages before."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("jobs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-c", PHOTOS], cwd=folder, check=True)
    return folder


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_blocks_without_a_title_run(page: Path, desk: Path) -> None:
    shell = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for language, text in untitled(page):
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else ["python", "-c", text]
        done = subprocess.run(command, cwd=desk, env=shell, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
