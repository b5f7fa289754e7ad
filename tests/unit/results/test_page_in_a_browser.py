"""The page as people use it, in a real Chromium without a screen."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedsim.results.comparing import Wish
from fedsim.verbs.compare import report
from tests.unit.results.made import HOSTILE, write_whole_runs
from tests.unit.results.test_comparing import write_runs

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is in requirements-dev.txt")

#: What distributions call the program.
PROGRAMS = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
WIDTHS = (390, 1400)


@dataclass
class Opened:
    """A page, what it said, and what it asked for beside itself."""

    page: "playwright.Page"
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return report(write_whole_runs(folder / "runs"), Wish(), folder / "page.html")


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    """Playwright's own Chromium, or the one of the system."""
    with playwright.sync_playwright() as started:
        own = Path(started.chromium.executable_path)
        found = own if own.exists() else next(filter(None, map(shutil.which, PROGRAMS)), None)
        if found is None:
            pytest.skip(f"no Chromium: neither Playwright's own nor {' or '.join(PROGRAMS)} on the path")
        running = started.chromium.launch(executable_path=found)
        yield running
        running.close()


@pytest.fixture(params=WIDTHS)
def opened(request: pytest.FixtureRequest, browser: "playwright.Browser", file: Path) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": request.param, "height": 900})
    one = Opened(context.new_page())
    one.page.on("console", lambda message: one.console.append(message.text))
    one.page.on("pageerror", lambda error: one.console.append(str(error)))
    one.page.on("request", lambda asked: one.requests.append(asked.url))
    one.page.goto(file.as_uri())
    yield one
    assert one.console == []
    assert one.requests == [file.as_uri()]
    context.close()


def column(page: "playwright.Page", table: str, number: int) -> list[str]:
    return page.locator(f"{table} tbody tr > :nth-child({number})").all_inner_texts()


def test_it_fits_the_screen(opened: Opened) -> None:
    sizes = opened.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert sizes[0] <= sizes[1]
    assert opened.page.locator("svg .line").count() > 10
    for panel in opened.page.locator(".panels svg").all():
        box = panel.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= sizes[1]


def test_tables_are_sorted_by_what_is_pressed(opened: Opened) -> None:
    table, head = "#part0 table", opened.page.locator("#part0 thead th").nth(2)
    assert column(opened.page, table, 1)[:2] == ["fedavg", "deer"]
    head.locator("button").click()
    assert column(opened.page, table, 3) == ["0.725 ± 0.019", "0.605 ± 0.014", "0.486 ± 0.010"]
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").press("Enter")
    assert column(opened.page, table, 3) == ["0.486 ± 0.010", "0.605 ± 0.014", "0.725 ± 0.019"]
    assert head.get_attribute("aria-sort") == "ascending"
    # The best one has no difference to itself, and stays last whichever way.
    difference = opened.page.locator("#part0 thead th button").nth(3)
    for _ in range(2):
        difference.click()
        assert column(opened.page, table, 4)[-1] == "-"
    opened.page.locator("#part0 thead th button").first.click()
    assert column(opened.page, table, 1)[:2] == ["deer", "fedavg"]


def test_values_are_shown_under_the_pointer(opened: Opened) -> None:
    panel = opened.page.locator("#part0 .panels svg").first
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    assert box is not None
    opened.page.mouse.move(box["x"] + box["width"] - 14, box["y"] + 100)
    tip = opened.page.locator("#tip")
    assert tip.inner_text().split("\n")[0] == "round 6, 3 seeds"
    assert re.search(r"deer\s+0\.6054 ± 0\.014\b", tip.inner_text())
    at = tip.bounding_box()
    assert at is not None
    assert at["x"] >= 0
    assert at["x"] + at["width"] <= opened.page.evaluate("innerWidth")
    opened.page.mouse.move(2, 2)
    assert tip.is_hidden()
    panel.focus()
    panel.press("ArrowRight")
    panel.press("ArrowRight")
    assert tip.inner_text().startswith("round 2")


def test_over_bytes_each_curve_has_its_own_place(opened: Opened) -> None:
    panel = opened.page.locator("#part0 .panels svg").nth(1)
    panel.focus()
    panel.press("ArrowRight")
    words = opened.page.locator("#tip").inner_text()
    assert words.startswith("near 2 MB up and down, 3 seeds")
    assert re.search(r"deer\s+0\.254.* at 4", words)


def test_each_seed_is_a_point(opened: Opened) -> None:
    figure = opened.page.locator("#part0 .seeds svg")
    figure.scroll_into_view_if_needed()
    assert figure.locator(".seed").count() == 9
    box = figure.bounding_box()
    assert box is not None
    opened.page.mouse.move(box["x"] + 200, box["y"] + 4 + 45)
    assert re.fullmatch(
        r"deer\s+seed 0\s+0\.5911\s+seed 1\s+0\.605\d\s+seed 2\s+0\.619\d", opened.page.inner_text("#tip")
    )


def test_a_contender_is_switched_off_everywhere(opened: Opened) -> None:
    curves = opened.page.locator("#part0 .curve[data-name=deer]")
    before = curves.count()
    assert before == 6  # three panels of scores, one each of diagnostics, privacy and costs
    button = opened.page.locator("#part0 .legend button", has_text="deer").first
    button.click()
    assert curves.count() == 0
    assert opened.page.locator("#part0 .legend button[aria-pressed=false]").count() == 4
    button.click()
    assert curves.count() == before


def test_another_measure_is_drawn(opened: Opened) -> None:
    opened.page.locator("#part0 select").first.select_option("test.loss")
    panel = opened.page.locator("#part0 .panels svg").first
    assert "test loss" in (panel.text_content() or "")
    assert (panel.get_attribute("aria-label") or "").startswith("test loss over round")


def test_a_clients_curve_is_shown(opened: Opened) -> None:
    clients = opened.page.locator("#clients")
    clients.locator("select").first.select_option(label="deer_seed1")
    assert clients.locator("tbody tr").count() == 4
    assert clients.locator("tr.chosen").get_attribute("data-client") == "3"  # who has the most images
    clients.locator("tbody .pick").nth(2).click()
    assert clients.locator("tr.chosen").count() == 2
    assert clients.locator("svg .curve").count() == 2
    clients.locator("figure select").select_option("own.after.test.f1")
    panel = clients.locator(".panels svg")
    panel.focus()
    panel.press("ArrowRight")
    assert "client 2" in opened.page.locator("#tip").inner_text()
    assert "test f1 after communication" in (panel.text_content() or "")
    clients.locator("thead button").nth(1).click()
    assert column(opened.page, "#clients table", 1) == ["3", "2", "1", "0"]


def test_hostile_names_are_shown_and_do_nothing(opened: Opened) -> None:
    assert opened.page.evaluate("window.hacked") is None
    assert opened.page.locator("img").count() == 0
    assert HOSTILE in opened.page.locator("#clients .legend").first.inner_text()
    assert f"mine.{HOSTILE}" in opened.page.locator("#part0 .legend").first.inner_text()


def test_the_policy_stops_what_would_leave(opened: Opened) -> None:
    """A line of another's in the page asks for a picture and runs a program: the browser does neither."""
    failures: list[str | None] = []
    opened.page.on("requestfailed", lambda asked: failures.append(asked.failure))
    picture = '<img src="http://127.0.0.1:9/x.png" onerror="window.hacked = 1">'
    opened.page.evaluate("(text) => document.body.insertAdjacentHTML('beforeend', text)", picture)
    opened.page.wait_for_function("document.images[0].complete")
    assert opened.page.evaluate("window.hacked") is None
    assert opened.console
    assert all("Content Security Policy" in line for line in opened.console)
    assert failures == ["csp"]
    opened.console.clear()
    del opened.requests[1:]


def test_dark_and_print(browser: "playwright.Browser", file: Path) -> None:
    page = browser.new_page(color_scheme="dark", viewport={"width": 1400, "height": 900})
    page.goto(file.as_uri())
    colours = "(() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; })()"
    ink, paper = page.evaluate(colours)
    assert light(ink) > 200
    assert light(paper) < 60
    page.emulate_media(media="print")
    ink, paper = page.evaluate(colours)
    assert light(ink) < 60
    assert light(paper) == 255
    assert page.locator("nav").is_hidden()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.close()


def test_a_seed_in_which_nobody_has_a_score_is_no_error(browser: "playwright.Browser", tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {"fedavg": [0.5, 0.6], "deer": [0.7, 0.8]})
    for run in runs[1::2]:
        ended = json.loads((run / "results.json").read_text())
        (run / "results.json").write_text(json.dumps({**ended, "test": {"accuracy": None}}))
    page, said = browser.new_page(), list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.goto(report(runs, Wish(metrics=("accuracy",)), tmp_path / "a.html").as_uri())
    assert page.locator(".seeds .seed").count() == 2
    assert said == []
    page.close()


def light(colour: str) -> float:
    numbers = [float(number) for number in re.findall(r"[\d.]+", colour)[:3]]
    return sum(numbers) / 3
