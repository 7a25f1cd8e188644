"""The wheel and the source distribution: what is in them, and that they work without the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import mmdd_ray

ROOT = Path(__file__).parents[1]
NOT_PYTHON = {".jinja", ".json", ".safetensors", ".txt", ".md"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with a wheel and a source distribution of the tracked files."""
    out, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in tracked.decode().strip("\0").split("\0"):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(
        command, check=True, capture_output=True
    )  # the wheel is built from the source distribution
    return out


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


def test_the_wheel_holds_the_package_with_its_zoo_and_templates_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "mmdd_ray"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {name for name in names if ".dist-info/" not in name} == {
        name for name in tracked if (ROOT / name).exists()
    }
    assert any(Path(name).suffix == ".safetensors" for name in names)
    assert wheel.stat().st_size < 20 * 2**20


def test_the_source_distribution_builds_the_same_package_and_has_its_tests(built):
    archive = next(built.glob("*.tar.gz"))
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "jobs/edge_cc3m.py", "tests/test_package.py"} <= names
    assert archive.stat().st_size < 25 * 2**20


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (cited["title"], cited["version"]) == ("mmdd-ray", mmdd_ray.__version__)


def test_the_wheel_asks_for_no_development_tools(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    needed = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    for tool in ("pytest", "mypy", "ruff", "playwright", "mkdocs", "moto", "datasets", "mlflow", "ipykernel"):
        assert not any(line.startswith(f"Requires-Dist: {tool}") for line in needed)


def test_an_installed_wheel_runs_without_the_checkout(wheel, tmp_path):
    """With the libraries of this environment, and the package from the wheel alone."""
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
    ]
    subprocess.run([*pip, str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}

    def run(*command):
        return subprocess.run(
            command, cwd=home, env=environment, capture_output=True, text=True, check=True
        ).stdout

    where = run(sys.executable, "-c", "import mmdd_ray; print(mmdd_ray.__file__)")
    assert where.startswith(str(site))
    assert run(str(site / "bin" / "mmdd"), "--version") == f"mmdd-ray {mmdd_ray.__version__}\n"
    planned = run(str(site / "bin" / "mmdd"), "plan", "edge", "--plan.cpus", "2", "--plan.gpus", "0")
    assert "students" in planned


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_an_empty_environment_makes_a_first_set_from_the_wheel(wheel, tmp_path):
    """Installs it with its dependencies from the package index, and distils as the README says."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(wheel)], check=True, env=environment)
    done = subprocess.run(
        [str(python.with_name("mmdd")), "edge", "local", "--run.num_cpus", "2"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs" / "edge_cc3m-local" / "report.html").exists()
