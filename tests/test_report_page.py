"""The page of a report in a real Chromium: no error, no broken picture, by keyboard, in both themes and on a phone."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_report import EVALUATION, HOSTILE, METRICS, audit_of

from mmdd_ray.config import Data, Evaluation
from mmdd_ray.data import shapes
from mmdd_ray.data.pair import REJECT_SCHEMA
from mmdd_ray.distilled.contact_sheet import png_bytes
from mmdd_ray.distilled.sample import Sample
from mmdd_ray.distilled.write import write_distilled
from mmdd_ray.engine.run_dir import RunDir, StageResult
from mmdd_ray.engine.settings_changes import resolved
from mmdd_ray.evaluation.report.beside import Beside
from mmdd_ray.evaluation.report.build import build_report
from mmdd_ray.evaluation.report.gallery import gallery
from mmdd_ray.evaluation.report.page import report_html, write_report
from mmdd_ray.evaluation.spread import spread
from mmdd_ray.methods.edge.presets import local
from mmdd_ray.methods.edge.settings import Edge
from mmdd_ray.storage.store import Store

playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PAIRS = 7
MOST_BYTES = 5_000_000
PHONE_PX = 390
LEAST_CONTRAST = 4.5  # of text, by WCAG 2.2, level AA
NEVER_FALLS = {"step": [float(step) for step in range(40)], "total": [1.0, 1.1] * 20}

SOURCE = {
    "shards": 1,
    "missing_files": [],
    "recorded_shards": 0,
    "listed": 0,
    "downloaded": 0,
    "fingerprint": "0123456789abcdef" * 4,
}

# The least contrast of all visible texts with the first opaque background behind them.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const levels = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = one => {
    for (let at = one; at; at = at.parentElement) {
      const found = levels(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let least = [100, ''];
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !one.checkVisibility() || one.closest('.skip, style')) continue;
    const style = getComputedStyle(one);
    const ink = one.closest('svg') && style.fill !== 'none' ? style.fill : style.color;
    const [a, b] = [light(levels(ink)), light(behind(one))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < least[0]) least = [contrast, walker.currentNode.data.trim().slice(0, 40)];
  }
  return least;
}"""

# Names of pictures that do not show: of images, and of images inside SVG, which have no naturalWidth.
BROKEN = """async () => {
  const broken = [...document.images].filter(one => !(one.complete && one.naturalWidth > 0)).map(one => one.alt);
  for (const one of document.querySelectorAll('svg image')) {
    const picture = new Image();
    picture.src = one.getAttribute('href');
    await picture.decode().catch(() => broken.push(one.id));
  }
  return broken;
}"""


def jpeg_like(seed: int, side: int = 224) -> np.ndarray:
    """A picture that takes as many bytes as a photograph with much detail."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).resize((side, side))
    return np.clip(np.asarray(coarse) + rng.normal(0, 8, (side, side, 3)), 0, 255).astype(np.uint8)


def samples_of(count: int) -> list[Sample]:
    drawn = list(shapes.pairs(0, count, seed=1))
    return [
        Sample(
            key=f"edge-{number:03d}",
            image=pair["image"],
            captions=(HOSTILE if number == 0 else pair["captions"][0], "another caption"),
            seed=100 + number,
            source_key=f"shapes-00000/{pair['key']}",
            extra={"clip_score": 0.25},
        )
        for number, pair in enumerate(drawn)
    ]


def write_audit(run: Store, keys: list[str], picture: bytes) -> dict[str, Any]:
    """An audit of a set whose images are less varied than real ones; gives what its file says."""
    run.write_bytes("audit/copies.png", png_bytes(Image.new("RGB", (720, 90), "white")))
    table = {
        "key": keys,
        "real": [f"real-00000/{key}" for key in keys],
        "cosine": [0.75] * len(keys),
        "rms": pa.array([5.0, *[None] * (len(keys) - 1)], pa.float64()),
        "image": [picture] * len(keys),
    }
    run.write_parquet("audit/nearest_images.parquet", pa.table(table))
    points = np.random.default_rng(0).normal(size=(50, 2)).round(3)
    found = {
        "set": points[:20].tolist(),
        "real": points.tolist(),
        "explained": [12.5, 7.5],
        "variance": {"set": 0.2, "real": 0.5},
    }
    return audit_of() | {"map": found}


def write_run(folder: Path, samples: list[Sample]) -> Store:
    """A finished run whose set is below its baselines, with refused rows and two changed settings."""
    settings = Edge(
        data=Data(uri="s3://bucket/a-very-long-name-of-a-folder-without-any-space-in-it/*.tar"),
        evaluation=Evaluation(val="shapes:10", test="shapes:10"),
    )
    refused = {
        "shard": ["s0", "s0", "s1"],
        "key": ["k1", "", "k2"],
        "reason": ["blank caption"] * 2 + ["late"],
    }
    with RunDir.open(str(folder), "edge_cc3m", "local", settings) as run:
        run.devices = {"cpus": 2.0, "gpus": 1.0}
        run.store.write_json(
            "plan.json",
            {
                "stages": {
                    "features": {"gpus": 4.0, "gpu_hours": 2.0, "seconds": 1800.0, "peak_bytes": 3 * 10**9}
                }
            },
        )
        run.stage(
            "features",
            lambda _: StageResult(
                rows_in=12, rows_out=9, rejects={"blank caption": 2, "late": 1}, extra={"source": SOURCE}
            ),
        )
        run.store.write_parquet("rejects.parquet", pa.table(refused, REJECT_SCHEMA))
        write_distilled(samples, run.store.child("distilled"), method="EDGE", settings={}, seed=0, inputs={})
        return run.store


def report_of(run: Store, audit: dict[str, Any] | None = None) -> dict[str, Any]:
    scores = {"edge": [6.3, 6.7, 7.1], "random": [9.4, 9.6, 9.8]}
    sets = {
        name: EVALUATION["sets"][name] | {"metrics": dict.fromkeys(METRICS, spread([own]))}
        for name, own in scores.items()
    }
    return build_report(
        run,
        EVALUATION | {"sets": sets},
        losses=NEVER_FALLS,
        agreement={"prompts": 100, "real": 0.4, "drawn": 0.3, "drawn_better": 12.0},
        audit=audit,
        preset_settings=resolved(local()),
        command=f"python jobs/edge_cc3m.py local --data.uri {'x' * 200}",
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of such a run."""
    folder = tmp_path_factory.mktemp("page") / "run"
    samples = samples_of(PAIRS)
    run = write_run(folder, samples)
    audit = write_audit(run, [one.key for one in samples], samples[0].image)
    beside = [Beside("a cat", samples[0].image, samples[1].image, 0.1, 0.4)]
    write_report(report_of(run, audit), run, beside)
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as started:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-quic"]
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Any, report: Path) -> Iterator[Any]:
    """Opens the page with these options of a browser context."""
    contexts = []

    def open_page(**options: Any) -> Any:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.goto(report.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_the_page_shows_whole_pictures_without_errors_or_network(browser: Any, report: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert page.evaluate(BROKEN) == []
    assert page.locator("img").count() == 2 + 1 + PAIRS  # a real pair and its drawing, copies, nearest images
    assert page.locator("svg image").count() == PAIRS
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert report.stat().st_size < MOST_BYTES
    context.close()


def test_the_keyboard_reaches_theme_and_pairs_and_opens_one(opened: Any) -> None:
    page = opened()
    reached: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.getAttribute('popovertarget') ?? document.activeElement.id"
                " + document.activeElement.className"
            )
        )
        if reached[-1] == "pair-2":
            break
    assert reached[:2] == ["skip", "theme-auto"]
    assert reached[-2:] == ["pair-1", "pair-2"]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"

    pair = page.locator("#pair-2")
    assert not pair.is_visible()
    page.keyboard.press("Enter")
    assert pair.is_visible()
    told = " ".join(pair.inner_text().split())
    for text in ("another caption", "101", "shapes-00000/", "real-00000/edge-001", "cosine 0.75", "0.25"):
        assert text in told
    assert pair.locator("img").get_attribute("alt") == "The nearest real image, real-00000/edge-001"
    page.keyboard.press("Escape")
    assert not pair.is_visible()
    assert page.evaluate("document.activeElement.getAttribute('popovertarget')") == "pair-2"


def test_the_first_link_skips_to_the_content(opened: Any) -> None:
    page = opened()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes_and_the_reader_can_choose(opened: Any, scheme: str) -> None:
    page = opened(color_scheme=scheme)
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(paper)
    contrast, text = page.evaluate(CONTRAST)
    assert contrast >= LEAST_CONTRAST, text
    other = {"light": "dark", "dark": "light"}[scheme]
    page.locator("#theme-auto").focus()
    for _ in range({"light": 1, "dark": 2}[other]):
        page.keyboard.press("ArrowRight")
    assert page.locator(f"#theme-{other}").is_checked()
    assert page.evaluate(paper) != before
    contrast, text = page.evaluate(CONTRAST)
    assert contrast >= LEAST_CONTRAST, text


def test_a_phone_needs_no_sideways_scrolling(opened: Any) -> None:
    page = opened(viewport={"width": PHONE_PX, "height": 844})
    for summary in page.locator("summary").all():
        if not summary.evaluate("one => one.parentElement.open"):
            summary.click()
    assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE_PX
    page.locator("button[popovertarget=pair-1]").first.click()
    box = page.locator("#pair-1").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE_PX
    assert HOSTILE in page.locator("#pair-1").inner_text()  # as text


def test_a_table_that_scrolls_on_a_phone_keeps_its_first_column_and_the_command_wraps(opened: Any) -> None:
    page = opened(viewport={"width": PHONE_PX, "height": 844})
    wide = "[...document.querySelectorAll('.scroll')].find(one => one.scrollWidth > one.clientWidth + 40)"
    moved = page.evaluate(
        f"() => {{ const one = {wide}; one.scrollLeft = 40; const cell = one.querySelector('tbody td');"
        " return [one.scrollLeft, cell.getBoundingClientRect().left - one.getBoundingClientRect().left]; }"
    )
    assert moved == [40, 0]
    assert "linear-gradient" in page.evaluate(f"getComputedStyle({wide}).backgroundImage")
    command = "document.querySelector('#settings pre')"
    assert page.evaluate(f"{command}.scrollWidth - {command}.clientWidth") == 0


def test_the_page_tells_a_bad_outcome_rejects_costs_and_changes(opened: Any) -> None:
    page = opened()
    outcome = page.locator("#outcome").inner_text()
    assert outcome.startswith("EDGE is below random real pairs here; likely reasons")
    for reason in (
        "CLIP’s cosine is 0.300 on average against 0.400",
        "“total” was 1.05",
        "CLIP features is 0.200",
    ):
        assert reason in outcome
    rows = [row.split("\t") for row in page.locator("#rejects tbody").inner_text().splitlines()]
    assert rows == [["blank caption", "2", "s0/k1, s0/(no key)"], ["late", "1", "s1/k2"]]
    stage = page.locator("#stages tbody tr").first.inner_text()
    assert "30 min 0 s" in stage
    assert "3.0 GB" in stage
    assert "2.00" in stage
    page.locator("#settings summary").first.click()
    changed = page.locator("#settings tr.changed").all_inner_texts()
    assert any(line.startswith("uri\ts3://bucket/") and "shapes:2000" in line for line in changed)


def test_five_hundred_photographs_stay_below_the_limit(tmp_path: Path) -> None:
    files = [png_bytes(Image.fromarray(jpeg_like(seed))) for seed in range(8)]
    samples = [
        Sample(
            key=f"{n:04d}", image=files[n % 8], captions=("a caption " * 40,) * 5, seed=n, source_key=f"s/{n}"
        )
        for n in range(600)
    ]
    run = write_run(tmp_path / "run", samples)
    near = io.BytesIO()
    Image.fromarray(jpeg_like(9, 160)).save(near, "JPEG", quality=80)
    audit = write_audit(run, [one.key for one in samples], near.getvalue())
    page = report_html(report_of(run, audit), run)
    assert len(page.encode()) < MOST_BYTES
    shown = gallery(run)
    assert 100 < len(shown.tiles) < 500
    assert (shown.tiles[0].key, shown.images) == ("0000", 600)
    assert int(shown.tiles[-1].key) > 580  # spread over the set
    assert f"{len(shown.tiles)} of the images are shown" in page
