"""Opening a run directory, to look at a run or to finish it."""

from collections.abc import Mapping
from typing import Any

from mmdd_ray.config import RunSettings
from mmdd_ray.config.changes import changed
from mmdd_ray.engine.run_dir import MANIFEST, SETTINGS, StageDir
from mmdd_ray.engine.saved_run import saved_run
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.report.words import REPORT_JSON
from mmdd_ray.methods import METHODS
from mmdd_ray.methods.method import Method, Run
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store


def open_run(uri: str) -> Run:
    """The run in a folder or URI, as far as it has come.

    Raises:
        UserError: There is no run, it is damaged, or it is one of another version of this software.
    """
    store = Store(uri)
    saved = saved_run(store)
    settings = settings_of_run(saved, redact(store.uri))
    stages = {}
    for name in store.entries():
        folder = store.child(name)
        # the manifest of a distilled set is none of a stage
        if folder.exists(MANIFEST) and "stage" in (manifest := folder.read_json(MANIFEST)):
            stages[name] = StageDir(name, folder, name, manifest)
    report = store.read_json(REPORT_JSON) if store.exists(REPORT_JSON) else {}
    return Run(store, report, stages, settings, saved["preset"])


def settings_of_run(saved: Mapping[str, Any], where: str) -> RunSettings:
    """The settings in the `settings.json` of a run.

    Raises:
        UserError: This version has not this job or one of its settings.
    """
    default = method_of_run(saved, where).settings_of(saved["preset"])
    return changed(default, saved["settings"], f"{where}/{SETTINGS}")


def method_of_run(saved: Mapping[str, Any], where: str) -> Method[Any]:
    """The method whose `settings.json` this is.

    Raises:
        UserError: There is none of that name.
    """
    if saved["job"] not in METHODS:
        raise UserError(
            f"{where} holds a run of the job {saved['job']}, which this version of mmdd-ray has not"
        )
    return METHODS[saved["job"]]
