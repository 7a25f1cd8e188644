"""The functions of `import mmdd_ray`. Torch and Ray are imported by the functions that need them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmdd_ray.errors import UserError

if TYPE_CHECKING:
    from mmdd_ray.config import RunSettings
    from mmdd_ray.distilled.dataset import DistilledSet
    from mmdd_ray.methods.evaluate.settings import Evaluate
    from mmdd_ray.methods.evaluate_labelled.settings import EvaluateLabelled
    from mmdd_ray.methods.method import Run


def settings(command: str, preset: str | None = None, changes: Mapping[str, Any] | None = None) -> Any:
    """The settings of a preset, with changes.

    Examples:
        >>> edge = settings("edge", "local", {"synthesis.pairs": 50, "run": {"seed": 3}})
        >>> edge.synthesis.pairs, edge.run.seed
        (50, 3)

    Args:
        command: Name of a command of `mmdd` that runs a job, such as "edge"; `mmdd --help` lists them.
        preset: Default: the first, "local".
        changes: Values by setting, with a dot between section and setting or nested.

    Raises:
        UserError: There is no such method, preset or setting, or a value is none that the setting can have.
    """
    from mmdd_ray.config.changes import changed, known_name
    from mmdd_ray.methods import METHODS

    by_name = {method.name: method for method in METHODS.values()}
    presets = by_name[known_name(command, by_name, "command")].presets
    name = next(iter(presets)) if preset is None else known_name(preset, presets, "preset")
    return changed(presets[name](), changes or {}, f"settings({command!r})")


def distill(settings: "RunSettings", preset: str | None = None) -> "Run":
    """Runs a method by its settings, or whatever is left to do of a run that was begun.

    Args:
        settings: Settings of any method, as `settings()` gives them.
        preset: Names the run directory, `runs/<job>-<preset>`, unless `settings.run.dir` does. Default: the preset that
            has these very settings, or "custom".

    Raises:
        UserError: Something in the settings or the data is wrong; one sentence that names the setting. Most of it is
            found before Ray starts. A subclass of ValueError.
        StorageError: Storage failed; the run can be resumed.
        ClusterError: Machines were lost; the run can be resumed.
    """
    from mmdd_ray.methods.execute import distill

    return distill(settings, preset)


def evaluate(*sets: "str | Run", settings: "Evaluate | EvaluateLabelled | None" = None) -> "Run":
    """Compares sets with each other and with real ones, by what students they train.

    Args:
        sets: Folders or URIs of distilled sets, other sources of pairs or of labelled images, or runs, whose distilled
            sets are meant.
        settings: Data, students and baselines. Default: tiny students on procedural scenes.

    Raises:
        UserError: As `distill`; and no set is named.
    """
    from mmdd_ray.distilled.sample import FOLDER
    from mmdd_ray.methods.evaluate.presets import local

    if not sets:
        raise UserError("evaluate() needs a set; name its folder or URI, or give a run")
    uris = tuple(one if isinstance(one, str) else one.store.child(FOLDER).uri for one in sets)
    return distill(replace(local() if settings is None else settings, set=uris))


def load_set(uri: str) -> "DistilledSet":
    """Reads a distilled set, and checks that it is whole: a dataset of PyTorch, and of Hugging Face.

    Args:
        uri: Its folder, a local path or a URI.

    Raises:
        UserError: There is none, or it is damaged.
    """
    from mmdd_ray.distilled import dataset

    return dataset.load_set(uri)


def load_run(uri: str) -> "Run":
    """Opens a run directory, of a finished run or an interrupted one, which `resume()` then finishes.

    Args:
        uri: Its folder, a local path or a URI.

    Raises:
        UserError: It holds no run of this version.
    """
    from mmdd_ray.methods.saved import open_run

    return open_run(uri)
