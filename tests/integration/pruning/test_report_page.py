"""The report in a real Chromium: legible in both themes, on a phone, on paper, and with no network."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from report_run import make_runs
from small_run import Silent

from pruning.report.build import write_report
from pruning.report.compare import compare
from pruning.report.compared import write_comparison

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed (Debian's package chromium)")
    with sync_playwright() as playwright:
        # Containers run tests as root and forbid the sandbox's namespaces.
        launched = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = make_runs(tmp_path_factory.mktemp("pages"))
    comparison = compare([folder / "run", folder / "other"], None, Silent())
    write_comparison(comparison, folder / "compare.html")
    return {
        "report": write_report(folder / "run", Silent()).page,
        "comparison": folder / "compare.html",
    }


@pytest.fixture(params=["report", "comparison"])
def page(browser: Browser, pages: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Page]:
    """The opened page, offline; what it asks for or complains about fails the test."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    noticed: list[str] = []
    page.on("pageerror", lambda error: noticed.append(str(error)))
    page.on("console", lambda message: noticed.append(message.text))
    page.on("request", lambda asked: noticed.append(asked.url))
    page.goto(pages[request.param].as_uri())
    yield page
    context.close()
    assert [words for words in noticed if not words.startswith(("file:", "data:"))] == []
    assert sum(words.startswith("file:") for words in noticed) == 1


# WCAG's contrast of every piece of text against the nearest opaque ground below it.
CONTRAST = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => parse(c).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => { while (e) { const c = getComputedStyle(e).backgroundColor; const p = parse(c);
    if (p.length === 3 || p[3] === 1) return c; e = e.parentElement; } return "rgb(255, 255, 255)"; };
  return [...document.querySelectorAll("body *:not(title)")].filter((e) => e.checkVisibility()
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
    .map((e) => { const s = getComputedStyle(e); const ink = e.closest("svg") ? s.fill : s.color;
      const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
      return [e.textContent.trim().slice(0, 40), (a + 0.05) / (b + 0.05)]; })
    .filter(([, ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(page: Page, theme: Any) -> None:
    page.emulate_media(color_scheme=theme)
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert page.evaluate(CONTRAST) == []


def test_pictures_are_drawn_within_their_frames(page: Page) -> None:
    """No label leaves its picture: text that is cut off would be lost."""
    outside = page.evaluate(
        """() => [...document.querySelectorAll("svg[role=img] text")].filter((e) => {
          const t = e.getBoundingClientRect(), f = e.closest("svg").getBoundingClientRect();
          return t.left < f.left - 1 || t.right > f.right + 1
            || t.top < f.top - 1 || t.bottom > f.bottom + 1;
        }).map((e) => e.textContent)"""
    )
    assert outside == []


def test_a_phone_shows_it_without_scrolling_sideways(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_on_paper_it_is_dark_on_light_whatever_the_theme(page: Page) -> None:
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(CONTRAST) == []
    assert page.pdf()[:5] == b"%PDF-"


def test_sections_are_reached_by_keyboard_and_by_name(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(pages["report"].as_uri())
    links = page.get_by_role("navigation", name="Sections").get_by_role("link")
    expect(links).to_have_count(7)
    page.keyboard.press("Tab")
    expect(links.first).to_be_focused()
    page.keyboard.press("Enter")
    assert page.url.endswith("#quality")
    expect(page.get_by_role("region", name="Quality")).to_be_in_viewport()
    heads = page.get_by_role("img", name=re.compile("^Map of 3 layers by 4 query heads"))
    expect(heads).to_be_visible()
    page.close()
