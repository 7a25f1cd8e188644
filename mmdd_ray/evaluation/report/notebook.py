"""A report in a notebook: the verdict, the table, the curves and the contact sheet."""

from collections.abc import Mapping
from html import escape
from typing import Any

from mmdd_ray.distilled.sample import CONTACT_SHEET, FOLDER
from mmdd_ray.distilled.thumbnails import data_uri
from mmdd_ray.evaluation.report.page_charts import report_charts
from mmdd_ray.evaluation.report.table import summary_table
from mmdd_ray.storage.store import Store


def show(report: Mapping[str, Any], run: Store) -> None:
    """Shows the report of a run in a notebook; elsewhere prints its table."""
    if not _in_notebook():
        print(summary_table(report))
        return
    from IPython.display import HTML, display

    display(HTML(notebook_html(report, run)))


def notebook_html(report: Mapping[str, Any], run: Store) -> str:
    """The report as HTML that stands in the page of a notebook."""
    parts = [f"<pre style='white-space: pre; overflow-x: auto'>{escape(summary_table(report))}</pre>"]
    parts += [f"<div style='max-width: 40em'>{svg}</div>" for svg in report_charts(report).values()]
    sheet = run.child(FOLDER)
    if report["distilled"] and sheet.exists(CONTACT_SHEET):
        png = data_uri(sheet.read_bytes(CONTACT_SHEET))
        parts.append(
            f"<img alt='Images of the distilled set with their captions' style='max-width: 100%' src='{png}'>"
        )
    return "\n".join(parts)


def _in_notebook() -> bool:
    """Whether a kernel of Jupyter runs this process; it alone shows HTML."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"
