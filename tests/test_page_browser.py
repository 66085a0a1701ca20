"""report.html and compare.html as a person meets them: in a browser, on a telephone, by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from embexp.compare import pages as compare_pages
from embexp.compare.collected import collect
from embexp.compare.groups import boards
from embexp.compare.pairs import pairs
from embexp.page import document
from embexp.page.writing import make
from tests import browser
from tests.browser import Page
from tests.folders import per_query, run_folder
from tests.test_page import HOSTILE, made

pytestmark = pytest.mark.browser
QUERIES = 60


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    try:
        with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
            yield opened
    except browser.NotInstalled as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind: of a run with hostile texts, of one with many queries, of many runs."""
    place = tmp_path_factory.mktemp("pages")
    made(place / "hostile", notes=[HOSTILE, "wide" * 100], names={"model": HOSTILE})
    texts = [f"query {n} {'odd' if n % 2 else 'even'}" for n in range(QUERIES)]
    tuned = [1 / (1 + n % 7) for n in range(QUERIES)]
    scores = per_query([0.5] * QUERIES, tuned, texts=texts)
    for n in range(8):
        run_folder(place / "many" / str(n), dev=0.5 + n / 100, learning_rate=10.0**-n, scores=scores)
    run_folder(place / "many" / "failed", status="failed")
    collected = collect([str(place / "many")])
    found = boards(collected.runs, metric=None)
    others = [run for run in collected.runs if run.status != "completed"]
    content = compare_pages.of(found, {board.title: pairs(board) for board in found}, others, collected.unread)
    document.write(place / "compare.html", "compare", content)
    return {
        "hostile": place / "hostile" / "report.html",
        "many": make(place / "many" / "3"),
        "compare": place / "compare.html",
    }


@pytest.mark.parametrize("name", ["hostile", "many", "compare"])
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (375, False), (375, True)])
def test_a_page_asks_for_nothing_complains_of_nothing_and_fits_its_window(page, files, name, width, dark):
    page.complaints.clear()
    page.requests.clear()
    page.open(files[name], width=width, dark=dark)
    assert page.complaints == []
    assert {address for address in page.requests if not address.startswith("data:")} == {files[name].as_uri()}
    assert page.asked("document.documentElement.scrollWidth") <= width
    assert page.asked("document.querySelectorAll('details').forEach(d => d.open = true)") is None
    assert page.asked("document.documentElement.scrollWidth") <= width
    ground = page.asked("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")


def test_the_policy_stops_what_a_text_could_smuggle_in(page, files):
    page.open(files["hostile"])
    assert page.asked("document.documentElement.lang") == "en"
    assert page.asked("document.images.length") == 0
    page.asked("document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/x\">')")
    page.asked("new Promise(done => setTimeout(done, 100))")
    assert any("Content Security Policy" in line for line in page.complaints)
    page.complaints.clear()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["hostile", "many", "compare"])
def test_every_text_stands_out_from_its_ground(page, files, name, dark):
    """A contrast of 4.5 to 1 at least, as WCAG asks of text."""
    page.open(files[name], dark=dark)
    faint = page.asked(
        """(() => {
          const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => {
            v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
            if (!/, 0\\)$|transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
          const found = [];
          for (const e of document.querySelectorAll('body *')) {
            if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || e.disabled) continue;
            if (['SCRIPT', 'STYLE', 'NOSCRIPT', 'title', 'desc', 'OPTION'].includes(e.tagName)) continue;
            const s = getComputedStyle(e), ink = e.tagName === 'text' ? s.fill : s.color;
            const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
            if ((a + 0.05) / (b + 0.05) < 4.5) found.push([e.tagName, ink, e.textContent]);
          }
          return found; })()"""
    )
    assert faint == []


def test_the_table_is_sorted_filtered_and_turned_by_keyboard(page, files):
    page.open(files["many"])
    head = "[...document.querySelectorAll('[data-table] thead button')]"
    shown = "[...document.querySelectorAll('[data-table] tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    status = "document.querySelector('[data-table] [role=status]').textContent"
    assert page.asked(status) == "60 of 60 shown"
    assert page.asked(f"{shown}.length") == 25

    page.asked(f"{head}.find(b => b.textContent === 'tuned rank').focus()")
    assert page.asked("document.activeElement.matches(':focus-visible')")
    assert page.asked("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    ranks = [int(row[3]) for row in page.asked(shown)]
    assert ranks == sorted(ranks)
    assert ranks[0] == 1
    assert page.asked("document.querySelector('th[aria-sort]').textContent") == "tuned rank"
    page.press("Enter")
    assert page.asked("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"
    assert int(page.asked(shown)[0][3]) == 7

    page.asked(
        "(i => { i.value = 'ODD query'; i.dispatchEvent(new Event('input')); })(document.querySelector('input'))"
    )
    assert page.asked(status) == "30 of 60 shown"
    page.asked("[...document.querySelectorAll('button')].find(b => b.textContent === 'Next').focus()")
    page.press("Enter")
    assert page.asked(f"{shown}.length") == 5
    assert page.asked("document.querySelectorAll('[data-table] .controls')[1].checkVisibility()")
    chosen = "(s => { s.value = '=better'; s.dispatchEvent(new Event('change')); })"
    page.asked(f"{chosen}([...document.querySelectorAll('label')].find(l => /since/.test(l.textContent)).children[0])")
    assert all(row[-1] == "better" for row in page.asked(shown))
    assert not page.asked("document.querySelectorAll('[data-table] .controls')[1].checkVisibility()")  # one page
    assert page.complaints == []


def test_a_page_says_what_is_what_to_a_screen_reader(page, files):
    for name in ("many", "compare"):
        page.open(files[name])
        for landmark in ("header", "nav[aria-label]", "main", "footer", "html[lang=en]"):
            assert page.asked(f"document.querySelectorAll('{landmark}').length") == 1, landmark
        assert page.asked("[...document.querySelectorAll('th')].filter(t => !t.scope).length") == 0
        assert page.asked("[...document.querySelectorAll('table')].filter(t => !t.caption.textContent).length") == 0
        assert page.asked("[...document.querySelectorAll('input, select')].filter(i => !i.labels.length).length") == 0
        nameless = (
            "[...document.querySelectorAll('svg')].filter(s => !s.querySelector('title') || !s.querySelector('desc'))"
        )
        assert page.asked(f"{nameless}.length") == 0
        ids = page.asked("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        levels = [
            int(tag[1]) for tag in page.asked("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => h.tagName)")
        ]
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))


def test_the_first_stop_of_the_keyboard_leads_past_the_links(page, files):
    page.open(files["many"])
    page.press("Tab")
    assert page.asked("document.activeElement.className") == "skip"
    assert page.asked("document.activeElement.getBoundingClientRect().left") >= 0
