"""Opening a run directory, to look at a run or to finish it."""

from mmdd_ray.config.changes import changed
from mmdd_ray.engine.run_dir import MANIFEST, SETTINGS, StageDir
from mmdd_ray.errors import UserError
from mmdd_ray.evaluation import beside_runs
from mmdd_ray.evaluation.report.words import REPORT_JSON
from mmdd_ray.methods import METHODS
from mmdd_ray.methods.method import Run
from mmdd_ray.storage.redact import redact
from mmdd_ray.storage.store import Store


def saved_run(uri: str) -> Run:
    """The run in a folder or URI, as far as it has come.

    Raises:
        UserError: There is no run, it is damaged, or it is one of another version of this software.
    """
    store = Store(uri)
    where = redact(store.uri)
    saved = beside_runs.saved_run(store, where)
    if saved["job"] not in METHODS:
        raise UserError(
            f"{where} holds a run of the job {saved['job']}, which this version of mmdd-ray has not"
        )
    default = METHODS[saved["job"]].settings_of(saved["preset"])
    settings = changed(default, saved["settings"], f"{where}/{SETTINGS}")
    stages = {
        name: StageDir(name, folder, name, folder.read_json(MANIFEST))
        for name in store.entries()
        if (folder := store.child(name)).exists(MANIFEST) and "stage" in folder.read_json(MANIFEST)
    }
    report = store.read_json(REPORT_JSON) if store.exists(REPORT_JSON) else {}
    return Run(store, report, stages, settings, saved["preset"])
