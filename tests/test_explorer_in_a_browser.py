"""The page in a real Chromium: mouse, keyboard, sliders, a table, bad input, the exported page, two widths of screen.

Run by `make test-browser`, which installs Playwright for Python; the browser is that of the system.
"""

import contextlib
import os
import pathlib
import shutil
import threading

import pytest

from widelimit.cli.explorer import export, finite, pages, server

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make test-browser")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
if not CHROMIUM:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENSHOTS = os.environ.get("SCREENSHOTS", "")
"""A folder for pictures of the page, to look at."""
SIZES = {"laptop": (1366, 900), "phone": (390, 844)}
WAIT = 120_000
"""Milliseconds: a busy machine compiles for long."""


@pytest.fixture(scope="module")
def address():
    """The page of a server in this process, whose networks are few."""
    few = {width: finite.Effort(20, 60) for width in finite.EFFORTS}
    listener, stop = server.listen(0), threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finite, "EFFORTS", few)
        thread = threading.Thread(target=server.run, args=(listener, stop, pages.START), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        stop.set()
        thread.join(5)
    listener.close()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as found:
        browser = found.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(chromium, address, size="laptop"):
    """The page, ready; nothing may be asked of another host, and no error may be in its console."""
    width, height = SIZES[size]
    page = chromium.new_page(viewport={"width": width, "height": height})
    errors, asked = [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    yield page
    assert [error for error in errors if "400 (Bad Request)" not in error] == []
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    page.close()


def shot(page, name):
    if SCREENSHOTS:
        page.screenshot(path=pathlib.Path(SCREENSHOTS) / f"{name}.png", full_page=True)


def points(page):
    return page.locator("#stage .point").count()


def place(page, k):
    """The middle of a point, in pixels."""
    middle = """(k) => { const box = document.querySelectorAll("#stage .point")[k].getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2]; }"""
    return page.evaluate(middle, k)


def drawn(page):
    """The mean's path in the large plot."""
    return page.locator("#stage path.mean").get_attribute("d")


def until(page, check):
    """Wait until a check of the page holds. (Playwright's own wait evaluates text, which the page's policy forbids.)"""
    for _ in range(WAIT // 50):
        if check():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it has not happened")


@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_the_screen(chromium, address, size):
    with opened(chromium, address, size) as page:
        assert page.evaluate("() => document.documentElement.scrollWidth") <= SIZES[size][0]
        cut = """() => [...document.querySelectorAll("main *")].filter((e) => e.scrollWidth > e.clientWidth + 1
            && getComputedStyle(e).overflowX !== "visible" && e.tagName !== "svg").map((e) => e.id || e.className)"""
        assert page.evaluate(cut) == []
        page.wait_for_selector("body[data-networks]")
        assert page.locator("#stage path.network").count() > 5
        assert page.locator("#histogram .bar").count() > 2
        assert page.locator("#kernel path.tangent").count() == 1
        shot(page, f"{size}-descent")
        before = drawn(page)
        page.locator("input[value=bayes]").check()
        until(page, lambda: drawn(page) != before)
        assert page.locator("#noise_std").is_visible()
        assert not page.locator("#time").is_visible()
        until(page, lambda: "networks of width" in page.inner_text("#histogram-words"))
        shot(page, f"{size}-bayes")


def test_every_control_has_a_name_and_shows_its_focus(chromium, address):
    with opened(chromium, address) as page:
        nameless = """() => [...document.querySelectorAll("input, select, textarea, button, [tabindex]")].filter((e) =>
            !(e.labels && e.labels.length) && !e.ariaLabel && !e.textContent.trim()).map((e) => e.outerHTML)"""
        assert page.evaluate(nameless) == []
        seen = []
        for _ in range(40):
            page.keyboard.press("Tab")
            seen.append(page.evaluate("() => document.activeElement.id || document.activeElement.value || ''"))
            bare = "(e) => e !== document.body && getComputedStyle(e).outlineStyle !== 'solid'"
            assert not page.evaluate(f"() => ({bare})(document.activeElement)"), seen
        wanted = {"stage", "play", "time", "activation", "depth", "weight_std", "bias_std", "inputs", "finite", "width"}
        assert wanted | {"preset", "undo", "clear", "upload", "place"} <= set(seen)


def test_points_by_mouse(chromium, address):
    with opened(chromium, address) as page:
        box, before = page.locator("#stage").bounding_box(), drawn(page)
        page.mouse.click(box["x"] + 0.55 * box["width"], box["y"] + 60)
        until(page, lambda: points(page) == 6 and drawn(page) != before)
        x, y = place(page, 5)
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x, y + 90, steps=4)
        page.mouse.up()
        until(page, lambda: abs(place(page, 5)[1] - y - 90) < 6)
        page.mouse.click(*place(page, 5))
        until(page, lambda: points(page) == 5)
        assert points(page) == 5


def test_points_by_keyboard(chromium, address):
    with opened(chromium, address) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("() => document.activeElement.id") == "stage"
        assert page.locator("#stage .cross").count() == 1
        for key in ("ArrowRight", "ArrowRight", "ArrowUp", "Shift+ArrowRight", "Enter"):
            page.keyboard.press(key)
        until(page, lambda: points(page) == 6)
        assert page.locator("#numbers").input_value().splitlines()[-1].startswith("0.7,")
        shot(page, "keyboard")
        page.keyboard.press("Delete")
        until(page, lambda: points(page) == 5)
        page.locator("summary").click()
        assert len(page.input_value("#numbers").splitlines()) == 5
        page.fill("#numbers", "-1, 0.5\n1; -0.5\n")
        page.click("#use")
        until(page, lambda: points(page) == 2)


def test_sliders(chromium, address):
    """By the keyboard: the words change at once, the numbers follow within 100 ms of the server's time."""
    with opened(chromium, address) as page:
        before = drawn(page)
        page.focus("#weight_std")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("label[for=weight_std] output") == "1.6"
        assert page.get_attribute("#weight_std", "aria-valuetext") == "1.6"
        until(page, lambda: drawn(page) != before)
        spent = []
        for _ in range(5):
            before = drawn(page)
            page.keyboard.press("ArrowRight")
            until(page, lambda before=before: drawn(page) != before)
            spent.append(float(page.get_attribute("body", "data-milliseconds")))
        print("milliseconds on the server:", spent)
        before = drawn(page)
        page.focus("#time")
        page.keyboard.press("Home")
        assert page.inner_text("#time-value") == "t = 0 (start)"
        assert drawn(page) != before
        page.keyboard.press("End")
        assert "\u221e" in page.inner_text("#time-value")
        curve = page.locator("#path path.mean").get_attribute("d")
        page.focus("#place")
        page.keyboard.press("ArrowRight")
        assert page.locator("#path path.mean").get_attribute("d") != curve


def test_the_training_plays(chromium, address):
    with opened(chromium, address) as page:
        page.focus("#time")
        page.keyboard.press("Home")
        page.click("#play")
        until(page, lambda: page.input_value("#time") not in ("0", "1"))
        page.click("#play")
        assert page.get_attribute("#play", "aria-label") == "Play the training"


def test_a_table(chromium, address, tmp_path):
    table = tmp_path / "temperatures.csv"
    table.write_text("hour,temperature\n" + "".join(f"{h},{15 + 6 * (h % 12)}\n" for h in range(0, 24, 2)))
    with opened(chromium, address) as page:
        page.locator("input[value=bayes]").check()
        page.set_input_files("#upload", table)
        until(page, lambda: points(page) == 12)
        assert page.locator("#stage .axis-name").all_text_contents() == ["hour", "temperature"]
        assert {"0", "20"} <= set(page.locator("#stage .tick").all_text_contents())
        until(page, lambda: "networks of width" in page.inner_text("#histogram-words"))
        shot(page, "table")
        table.write_text("a,b\n1,x\n2,y\n")
        page.set_input_files("#upload", [])
        page.set_input_files("#upload", table)
        until(page, lambda: "is not of numbers" in page.inner_text("#message"))
        assert points(page) == 12


def test_bad_input_is_explained(chromium, address):
    with opened(chromium, address) as page:
        page.locator("input[value=bayes]").check()
        page.locator("summary").click()
        page.fill("#numbers", "0, one")
        page.click("#use")
        assert page.inner_text("#message") == "Line 1 is not two numbers: 0, one"
        page.fill("#numbers", "0, 1\n0, 2")
        page.click("#use")
        page.focus("#noise_std")
        page.keyboard.press("Home")
        until(page, lambda: "noise" in page.inner_text("#message"))
        shot(page, "message")
        page.keyboard.press("End")
        until(page, lambda: not page.locator("#message").is_visible())
        page.click("#clear")
        until(page, lambda: points(page) == 0)
        assert "Add a point" in page.inner_text("#stage-words")


def test_the_exported_page_works_from_its_file(chromium, tmp_path):
    few = {"inputs": ["line"], "depth": [3], "activation": ["relu"], "weight_std": [1.5], "bias_std": [0.5],
           "noise_std": [0.1, 0.3], "width": [64]}  # fmt: skip
    file = tmp_path / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finite, "EFFORTS", {width: finite.Effort(20, 60) for width in finite.EFFORTS})
        file.write_bytes(export.export(pages.START, lambda *_: None, few))
    with opened(chromium, file.as_uri(), "phone") as page:
        page.wait_for_selector("body[data-networks]")
        assert points(page) == 5
        assert not page.locator("#upload").is_visible()
        before = drawn(page)
        page.locator("input[value=bayes]").check()
        until(page, lambda: drawn(page) != before)
        before = drawn(page)
        page.focus("#noise_std")
        page.keyboard.press("ArrowRight")
        until(page, lambda: drawn(page) != before)
        page.mouse.click(200, 300)
        assert points(page) == 5
        shot(page, "exported")


def test_an_error_on_the_page_is_found(chromium, address):
    """The control of `opened`: a request of another host, and an error of a script."""
    scripts = "() => { fetch('http://127.0.0.1:9/x').catch(() => 0); }", "() => { setTimeout(() => nothing(), 0); }"
    for script in scripts:
        page = opened(chromium, address)
        found = page.__enter__()
        found.evaluate(script)
        found.wait_for_timeout(300)
        with pytest.raises(AssertionError):
            page.__exit__(None, None, None)
