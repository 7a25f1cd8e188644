"""Hooks of mkdocs: pages that lie elsewhere in the repository, and the tables of settings."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mmdd_ray.cli.help import settings_table
from mmdd_ray.methods import METHODS

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "mmdd_ray/zoo/README.md": "zoo.md",
}
SETTINGS = re.compile(r"^<!-- settings of ([\w-]+) -->$", re.MULTILINE)
LINK = re.compile(r"\]\(((?:\.\./)*)((?:docs/|mmdd_ray/|CHANGELOG|CONTRIBUTING)[^)#]*)(#[^)]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that lie elsewhere."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links of the repository into links of the site, and puts tables of settings in their place."""
    up = "../" * page.file.src_uri.count("/")

    def link(found: re.Match[str]) -> str:
        target = ELSEWHERE.get(found[2], found[2].removeprefix("docs/"))
        return f"]({up}{target}{found[3] or ''})"

    by_name = {method.name: method for method in METHODS.values()}
    return SETTINGS.sub(
        lambda found: settings_table(by_name[found[1]].presets["local"]()), LINK.sub(link, markdown)
    )
