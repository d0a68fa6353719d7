"""steer.html in a headless Chromium, playwright's or the system's: hands, keys and pictures, with the weights in pretrained/."""

import time

import numpy as np
import pytest
from test_steer import command, end

from scripts.measure.steer import launch, wait
from scripts.measure.what_if import tip_motion

READ = """() => { const pen = new OffscreenCanvas(64, 64).getContext("2d", {willReadFrequently: true});
    pen.drawImage(document.querySelector("#tiles canvas"), 0, 0);
    return Array.from(pen.getImageData(0, 0, 64, 64).data); }"""
ROOM = 8  # a test clip whose arm has room in every direction


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright()
    with playwright as running:
        try:
            browser = launch(running)
        except Exception as error:
            pytest.skip(f"no Chromium starts here: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(chromium, tmp_path_factory):
    """steer.py at one clip: (its address, its folder of recordings)."""
    folder = tmp_path_factory.mktemp("steer")
    process, address = command("--log_dir", folder, "--n_samples", 1, "--clip", ROOM, "--rate", 5)
    yield address, folder
    end(process)


@pytest.fixture
def opened(chromium, server):
    """Opens a page in a context of its own. At the end nothing came from elsewhere, and the consoles are empty."""
    pages, said, asked = [], [], []

    def open_page(**context):
        page = chromium.new_context(**context).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.set_default_timeout(120_000)
        page.goto(server[0])
        wait(page, "view")
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    assert not said and asked and all(url.startswith((server[0].split("?")[0], "data:")) for url in asked)


@pytest.fixture
def page(opened):
    """A page that steers, at the given frames of the clip, paused, with one future."""
    page = opened()
    wait(page, "view.steers")
    page.keyboard.press("1")
    reset(page)
    return page


def reset(page):
    page.keyboard.press("r")
    wait(page, "view.t === 0 && !view.running && view.futures === 1")


def picture(page):
    """What the first canvas shows: (64, 64, 3) uint8."""
    return np.array(page.evaluate(READ), np.uint8).reshape(64, 64, 4)[..., :3]


def hold(page, key, steps):
    """Single steps with a key held, and what the canvas shows after each: (steps + 1, 64, 64, 3)."""
    frames, start = [picture(page)], page.evaluate("view.t")
    page.keyboard.down(key)
    for t in range(start + 1, start + steps + 1):
        page.keyboard.press(".")
        wait(page, f"view.t === {t}")
        frames.append(picture(page))
    page.keyboard.up(key)
    return np.stack(frames)


@pytest.mark.slow
def test_keys_pad_and_pictures(page):
    given = picture(page)
    page.keyboard.down("ArrowRight")  # the first key starts the clock
    wait(page, "view.t >= 3")
    page.keyboard.up("ArrowRight")
    assert page.evaluate("view.actions[1]") == [1, 0, 0, 0] and (picture(page) != given).any()
    page.keyboard.press("ArrowUp")  # a tap, and measured, as the clock runs already
    wait(page, "document.getElementById('latency').textContent.includes(' ms')")
    assert page.evaluate("view.actions.some(action => action[1] === 1)")
    page.keyboard.press("3")
    wait(page, "document.querySelectorAll('#tiles canvas').length === 4")
    page.keyboard.press("Space")
    wait(page, "!view.running")
    box = page.locator("#pad").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 5)
    page.mouse.down()
    page.keyboard.press(".")
    wait(page, "view.actions.at(-1)[1] === 1")
    page.mouse.up()


@pytest.mark.slow
@pytest.mark.parametrize("key, axis, sign", [("ArrowLeft", 0, -1), ("d", 0, 1), ("ArrowUp", 1, 1), ("s", 1, -1)])
def test_the_finger_tips_go_where_the_key_says(page, key, axis, sign):
    """By their magenta on the canvas, in pixels against the same steps with no key."""
    held = hold(page, key, 6)
    reset(page)
    still = hold(page, "Shift", 6)
    way = tip_motion(np.stack([held, still]), 1)
    assert sign * (way[0] - way[1])[axis] > 3 and abs((way[0] - way[1])[1 - axis]) < 3


@pytest.mark.slow
def test_pause_undo_reset_and_record(page, server):
    frames = hold(page, "ArrowRight", 12)
    page.keyboard.press("u")
    wait(page, "view.t === 2")
    assert (picture(page) == frames[2]).all()
    page.keyboard.press("v")
    wait(page, "document.getElementById('note').textContent.includes('recording_')")
    recording = max(server[1].glob("recording_*"))
    assert {f.name for f in recording.iterdir()} == {"steer.gif", "actions.csv", "steer.json"}
    assert [float(line.split(",")[0]) > 0 for line in (recording / "actions.csv").read_text().splitlines()[:4]] == [True, True, False, False]
    page.keyboard.press("Space")
    wait(page, "view.running && view.t >= 4")
    page.keyboard.press("Space")
    wait(page, "!view.running")
    t = page.evaluate("view.t")
    time.sleep(1)
    assert page.evaluate("view.t") == t, "a paused model rests"
    reset(page)
    assert (picture(page) == frames[0]).all() and page.evaluate("view.actions.length") == 0


@pytest.mark.slow
def test_two_tabs(page, opened):
    """The first steers, the second sees the same pictures and does nothing; when the first goes, it steers."""
    other = opened()
    assert other.inner_text("#role") == "you watch" and other.is_disabled("[data-do=step]")
    hold(page, "ArrowRight", 3)
    wait(other, "view.t === 3")
    assert (picture(other) == picture(page)).all()
    other.keyboard.press("r")
    other.keyboard.down("ArrowLeft")
    page.keyboard.press(".")
    wait(other, "view.t === 4")
    assert page.evaluate("view.actions.at(-1)") == [0, 0, 0, 0]
    page.context.close()
    wait(other, "view.steers")
    assert other.inner_text("#role") == "you steer"


@pytest.mark.slow
def test_fingers_on_a_telephone(opened):
    """A narrow page without a keyboard: one column, a button and the pad under a finger, nothing wider than the screen."""
    page = opened(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    wait(page, "view.steers")
    page.tap("[data-do=reset]")
    wait(page, "view.t === 0 && !view.running")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    touch = page.context.new_cdp_session(page)
    for where, at, action in (("[data-axis='2'][data-sign='1']", (0.5, 0.5), [0, 0, 1, 0]), ("#pad", (0.95, 0.5), [1, 0, 0, 0])):
        page.locator(where).scroll_into_view_if_needed()
        box = page.locator(where).bounding_box()
        point = {"x": box["x"] + at[0] * box["width"], "y": box["y"] + at[1] * box["height"]}
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
        wait(page, f"view.actions.length && String(view.actions.at(-1)) === '{','.join(map(str, action))}'")
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        wait(page, "String(view.actions.at(-1)) === '0,0,0,0'")
