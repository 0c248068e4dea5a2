"""The page in a real Chromium: a person's whole flow, by mouse and by keyboard, in both themes."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

pytestmark = [pytest.mark.browser, pytest.mark.valkey, pytest.mark.slow]
PATIENCE_MS = 30_000


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


@pytest.fixture
def service(start_service: Any, two_artifacts: Path, tmp_path: Path) -> Any:
    """Two artifacts, a key that calls need, and a token that swaps need."""
    (tmp_path / "keys").write_text("reader\n")
    (tmp_path / "token").write_text("root\n")
    return start_service(
        artifacts=two_artifacts,
        ESPALIER_CHECKPOINT="tiny",
        ESPALIER_API_KEYS_FILE=str(tmp_path / "keys"),
        ESPALIER_ADMIN_TOKEN_FILE=str(tmp_path / "token"),
    )


@pytest.fixture
def page(browser: Browser, service: Any) -> Iterator[Page]:
    """The opened page; whatever it complains about, in the console or as an error, fails the test."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(service.url)
    yield page
    context.close()
    # A browser logs every refused call; which calls are refused is what the tests ask for.
    refused = re.compile(r"status of (401|403|412)")
    assert [text for text in complaints if not refused.search(text)] == []


def give(page: Page, label: str, secret: str) -> None:
    page.get_by_role("dialog").get_by_label(label).fill(secret)
    page.get_by_role("button", name="Continue").click()


def recommended_titles(service: Any, *item_ids: str) -> list[str]:
    """What the service answers to this history."""
    key = {"Authorization": "Bearer reader"}
    answer = httpx.post(
        f"{service.url}/recommend", json={"history": item_ids}, headers=key, timeout=30
    ).json()
    return [item["title"] for item in answer["items"]]


def test_a_persons_whole_flow(page: Page, service: Any) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    give(page, "Key", "wrong")
    expect(page.get_by_role("dialog")).to_contain_text("not among those")
    give(page, "Key", "reader")
    expect(page.locator("#model")).to_contain_text("tiny@")
    expect(page.locator("#verdict")).to_contain_text("popular")

    # Search, and build a history by clicking.
    page.get_by_label("Search titles").fill("myst")
    page.get_by_role("button", name="Add Myst 2").click()
    expect(page.locator("#verdict")).to_contain_text("exact")
    page.get_by_label("Search titles").fill("witcher 3")
    page.get_by_role("button", name="Add The Witcher 3: Wild Hunt").click()
    history = page.get_by_role("list", name="Enjoyed, oldest first").get_by_role("listitem")
    expect(history).to_have_count(2)
    recommended = page.get_by_role("list", name="Recommended next").get_by_role("listitem")
    expect(recommended).to_have_count(10)
    expect(recommended.first).to_contain_text(re.compile(r"\d %"))
    expect(page.locator("#stages")).to_contain_text(re.compile(r"prefill\s*\d"))
    answered = recommended_titles(service, "g13", "g29")
    expect(page.locator("#items .title")).to_have_text(answered)
    assert "Myst 2" not in answered  # what was seen is left out

    # Swap: the token is asked for, a wrong one is refused, the answers are the other checkpoint's.
    page.get_by_role("button", name="Activate other").click()
    give(page, "Token", "wrong")
    expect(page.get_by_role("dialog")).to_contain_text("not among those")
    give(page, "Token", "root")
    expect(page.locator("#operation")).to_contain_text("Activating other: done")
    expect(page.locator("#model")).to_contain_text("other@")
    expect(page.locator("#items .title")).to_have_text(recommended_titles(service, "g13", "g29"))
    expect(page.get_by_role("row", name=re.compile("^other"))).to_contain_text("serving")
    page.get_by_role("button", name="Roll back to tiny").click()  # the token is remembered
    expect(page.locator("#operation")).to_contain_text("Rolling back: done")
    expect(page.locator("#model")).to_contain_text("tiny@")
    expect(history).to_have_count(2)

    # Live curves, told to those who do not see them.
    expect(page.locator("#latency svg[role=img]")).to_have_attribute(
        "aria-label", re.compile(r"p99 \d+.* ms")
    )
    expect(page.locator("#memory svg[role=img]")).to_have_attribute(
        "aria-label", re.compile(r"weights \d.*KV cache")
    )
    expect(page.get_by_text("ready", exact=True)).to_be_visible()

    # Nothing is kept: after a reload the key is asked for again.
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    page.reload()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_by_keyboard_alone(page: Page) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.type("reader")
    page.keyboard.press("Enter")
    search = page.get_by_label("Search titles")
    expect(page.locator("#model")).to_contain_text("tiny@")
    while not search.evaluate("element => element === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.type("stardew")
    expect(page.locator("#found")).to_have_text("One title found:")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(1)
    remove = page.get_by_role("button", name="Remove Stardew Valley")
    for _ in range(4):
        page.keyboard.press("Tab")
        if remove.evaluate("element => element === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(0)
    expect(search).to_be_focused()
    activate = page.get_by_role("button", name="Activate other")
    activate.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Token", exact=True)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


# WCAG's contrast of every piece of text against the nearest opaque ground below it.
CONTRAST = """() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => parse(c).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => { while (e) { const c = getComputedStyle(e).backgroundColor; const p = parse(c);
    if (p.length === 3 || p[3] === 1) return c; e = e.parentElement; } return "rgb(255, 255, 255)"; };
  return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()
    && !e.closest("dialog") && !e.disabled
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
    .map((e) => { const s = getComputedStyle(e); const ink = e.closest("svg") ? s.fill : s.color;
      const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
      return [e.textContent.trim().slice(0, 40), (a + 0.05) / (b + 0.05)]; })
    .filter(([, ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast_and_controls_have_names(page: Page, theme: Any) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    page.emulate_media(color_scheme=theme)
    give(page, "Key", "reader")
    page.get_by_role("button", name=re.compile("^Add ")).first.click()
    expect(page.locator("#verdict")).to_contain_text("model")
    expect(page.locator("#latency svg[role=img]")).to_be_visible()
    assert page.evaluate(CONTRAST) == []
    named = "[...document.querySelectorAll('button, a')].every(e => (e.ariaLabel ?? e.textContent).trim())"
    assert page.evaluate(named)
    assert page.evaluate("[...document.querySelectorAll('input')].every(e => e.labels.length)")


def test_a_phone_shows_it_without_scrolling_sideways(page: Page) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    page.set_viewport_size({"width": 360, "height": 740})
    give(page, "Key", "reader")
    expect(page.get_by_role("button", name="Activate other")).to_be_attached()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_curves_differ_by_more_than_colour(page: Page) -> None:
    expect.set_options(timeout=PATIENCE_MS)
    give(page, "Key", "reader")
    legend = page.locator("#memory .legend polyline")
    expect(legend).to_have_count(5)
    dashes = legend.evaluate_all("lines => lines.map(line => getComputedStyle(line).strokeDasharray)")
    assert len(set(dashes)) == 5
