"""Opening a run directory, to look at a run or to finish it."""

from mmdd_ray.config.changes import changed
from mmdd_ray.engine.run_dir import LAYOUT, MANIFEST, SETTINGS, StageDir
from mmdd_ray.engine.settings_file import read_settings
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation.report.words import REPORT_JSON
from mmdd_ray.methods import METHODS
from mmdd_ray.methods.method import Run
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store


def saved_run(uri: str) -> Run:
    """The run in a folder or URI, as far as it has come.

    Raises:
        UserError: There is no run, or one of another version of this software.
    """
    store = Store(uri)
    where = redact(store.uri)
    if not store.exists(SETTINGS):
        raise UserError(f"{where} holds no run: it has no {SETTINGS}; name a run directory")
    if store.read_json(SETTINGS).get("layout") != LAYOUT:
        raise UserError(f"{where} holds a run of another version of mmdd-ray, which this one cannot read")
    saved = read_settings(store.path(SETTINGS), None)
    method = METHODS[saved.job or ""]
    settings = changed(method.settings_of(saved.preset), saved.values, saved.where)
    stages = {
        name: StageDir(name, folder, name, folder.read_json(MANIFEST))
        for name in store.entries()
        if (folder := store.child(name)).exists(MANIFEST) and "stage" in folder.read_json(MANIFEST)
    }
    report = store.read_json(REPORT_JSON) if store.exists(REPORT_JSON) else {}
    return Run(store, report, stages, settings, saved.preset or "custom")
