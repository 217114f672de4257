"""The evaluation's page: complete, safe, and in need of nothing else."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import tifffile
from PIL import Image

from live_sr.train.evaluate import Evaluation, evaluate
from live_sr.train.report import HEADINGS, best_classical, cells, page
from live_sr.upscaler import Bilinear

HOSTILE = "<script>alert('x')&amp;.tif"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    y, x = np.mgrid[:150, :200]
    image = np.rint(127 + 80 * np.sin(x / 5) * np.cos(y / 7)).astype(np.uint8)
    folder = tmp_path_factory.mktemp("images")
    for name in (HOSTILE, "plain.tif"):
        tifffile.imwrite(folder / name, image)
    return evaluate(Bilinear(2), [folder / HOSTILE, folder / "plain.tif"], doses=[10, 40])


@pytest.fixture(scope="module")
def html(result: Evaluation) -> str:
    return page(result)


class Reader(HTMLParser):
    """Collects tags and attributes, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.alts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [v for k, v in attrs if k in ("src", "srcset", "href") and v]
        if tag == "img":
            self.alts.append(dict(attrs)["alt"] or "")
        if tag not in ("meta", "img", "source"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_loads_nothing_and_runs_nothing(html: str) -> None:
    page = Reader(html)
    assert "script" not in page.tags
    assert all(url.startswith("data:image/") for url in page.urls)
    assert "@import" not in html
    assert "url(" not in html


def test_names_are_text_and_never_markup(html: str) -> None:
    assert HOSTILE not in html
    assert HOSTILE in Reader(html).text


def test_every_number_of_every_row_is_on_the_page(html: str, result: Evaluation) -> None:
    text = Reader(html).text
    for row in (*result.rows, *result.means):
        for method in cells(row):
            assert "".join(method) in text.replace("\n", "")


def test_every_curve_has_a_light_and_a_dark_version_and_says_what_it_shows(html: str) -> None:
    page = Reader(html)
    curves = [url for url in page.urls if url.startswith("data:image/svg+xml")]
    assert len(curves) == 2 * (2 + 2 * 2 + 2 * 2)  # over dose; two of frequency and of intensity for each dose
    assert page.tags.count("source") * 2 == len(curves)
    assert all(page.alts)
    for url in curves:
        svg = base64.b64decode(url.split(",")[1]).decode()
        assert "<svg" in svg
        assert not re.search(r"<script|<image", svg)


def test_pictures_are_sheets_of_the_tiles(html: str) -> None:
    sheets = [url for url in Reader(html).urls if url.startswith("data:image/png")]
    assert len(sheets) == 1 + 2  # examples, and the worst tiles of two doses
    for url in sheets:
        picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
        assert picture.width > 5 * 256  # raw, bicubic, best classical, live-sr, truth


def test_the_best_classical_method_is_not_the_model(result: Evaluation) -> None:
    row = result.mean
    best = best_classical(row)
    assert best != "live-sr"
    assert row.methods[best].psnr == max(q.psnr for name, q in row.methods.items() if name != "live-sr")


def test_cells_have_a_heading_each(result: Evaluation) -> None:
    assert {len(texts) for texts in cells(result.mean)} == {len(HEADINGS)}
