"""The viewer in a real browser: Debian's chromium and chromium-driver.

Where they are not installed the tests are skipped; DINO_SSL_REQUIRE_BROWSER=1 makes that a failure.
"""

import base64
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from dino_ssl.evaluation.masks import mass_mask
from dino_ssl.evaluation.viewer import Scene, Shown, write_viewer
from dino_ssl.evaluation.viewer_blocks import errors
from dino_ssl.models.attention_map import AttentionMap

GRID, OTHER_GRID, TALL_GRID = (5, 8), (3, 3), (7, 4)
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\n\"'&\u202e.jpg"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


def a_map(seed: int, grid=GRID, *, heads=3, prefix=3, sharpness=6.0) -> AttentionMap:
    made = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, heads, prefix + grid[0] * grid[1], 16, generator=made) for _ in range(2))
    return AttentionMap(query * sharpness * 16**-0.5, key, grid, prefix)


def photograph(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // width, 255 * y // height, 255 * (x + y) // (width + height)], axis=-1).astype(np.uint8)


MAPS = {block: a_map(block) for block in range(4)}
OTHER = {block: a_map(10 + block, OTHER_GRID, heads=2, prefix=1) for block in range(2)}
WIDE = photograph(480, 300)


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    if missing := [program for program in ("chromium", "chromedriver") if shutil.which(program) is None]:
        reason = f"not installed: {', '.join(missing)} (Debian: chromium chromium-driver)"
        if os.environ.get("DINO_SSL_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield browser
    browser.quit()


class Page:
    """What a person does to the page, and sees of it."""

    def __init__(self, driver: webdriver.Chrome, path: Path, scenes: list[Scene], **options) -> None:
        self.driver = driver
        write_viewer(path, scenes, num_scenes=len(scenes), **options)
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.set_window_size(1400, 900)
        driver.get("about:blank")
        # A pointer left on the page before would hover over this one.
        ActionChains(driver, 0).move_by_offset(0, 0).perform()
        driver.get(path.as_uri())
        self.settle()

    def settle(self) -> None:
        """Wait until everything is drawn."""
        drawn = "return document.body.dataset.drawn === String(drawing)"
        WebDriverWait(self.driver, 30, 0.02).until(lambda driver: driver.execute_script(drawn))

    def run(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def to_patch(self, row: int, column: int, *, grid=GRID, panel=0, click=False) -> None:
        stage = self.all(".stage")[panel]
        x, y = ((place + 0.5) / count - 0.5 for place, count in ((column, grid[1]), (row, grid[0])))
        size = stage.rect
        chain = ActionChains(self.driver, 0)
        chain.move_to_element_with_offset(stage, round(x * size["width"]), round(y * size["height"]))
        (chain.click() if click else chain).perform()
        self.settle()

    def leave(self) -> None:
        ActionChains(self.driver, 0).move_to_element(self.one("#name")).perform()
        self.settle()

    def press(self, *keys: str) -> None:
        ActionChains(self.driver, 0).send_keys(*keys).perform()
        self.settle()

    def click(self, selector: str, number: int = 0) -> None:
        self.all(selector)[number].click()
        self.settle()

    def pressed(self, group: str) -> list[str]:
        """Labels of the pressed buttons."""
        return [b.get_attribute("aria-label") for b in self.all(f'{group} [aria-pressed="true"]')]

    def reading(self, panel: int = 0) -> tuple[str, str, float]:
        """Whose attention, to which patch, and how much."""
        text = self.all(".readout")[panel].text
        found = re.fullmatch(r"(.+) → (.+): weight ([\d.e-]+), [\d.]+ % of what patches get(, the largest)?", text)
        assert found, text
        return found[1], found[2], float(found[3])

    def weights(self, panel: int, block: int, head: int, token: int) -> list[float]:
        """What the page computes for a row; head -1 is the mean."""
        script = "const [p, b, ...rest] = arguments; return Array.from(weights(panels[p].model.blocks[b], ...rest))"
        return self.run(script, panel, block, head, token)

    def picture(self, selector: str = ".stage") -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(self.one(selector).screenshot_as_png)).convert("RGB")).astype(int)

    def problems(self) -> list[str]:
        """Errors and warnings of the console, and everything that was fetched."""
        fetched = self.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        logged = [str(entry) for entry in self.driver.get_log("browser")]
        return logged + [name for name in fetched if not name.startswith("data:")]


@pytest.fixture
def page(driver, tmp_path) -> Iterator[Page]:
    """One model on one wide photograph."""
    opened = Page(driver, tmp_path / "viewer.html", [Scene("a.jpg", WIDE, [Shown("model", MAPS)])])
    yield opened
    assert opened.problems() == []


@pytest.fixture
def two(driver, tmp_path) -> Iterator[Page]:
    """Two models with different grids."""
    models = [Shown("model", MAPS), Shown("other", OTHER, note="a note " * 40)]
    opened = Page(driver, tmp_path / "viewer.html", [Scene("a.jpg", WIDE, models)])
    yield opened
    assert opened.problems() == []


def exact(attention: AttentionMap, head: int, token: int) -> torch.Tensor:
    rows = attention.rows(torch.tensor([token]))[0, :, 0]
    return rows.mean(0) if head == -1 else rows[head]


def named(index: int, grid=GRID) -> str:
    return f"row {index // grid[1]}, column {index % grid[1]}"


@pytest.mark.parametrize(("bits", "budget"), [(16, 10**7), (8, 100_000)])
def test_the_page_computes_the_softmax_of_the_model_to_the_error_that_it_states(driver, tmp_path, bits, budget):
    scene = Scene("a.jpg", photograph(60, 40), [Shown("model", MAPS), Shown("other", OTHER)])
    page = Page(driver, tmp_path / "viewer.html", [scene], budget=budget)
    blocks = page.run("return panels.map((panel) => panel.model.blocks.map(({bits, number}) => [bits, number]))")
    assert {each[0] for panel in blocks for each in panel} == {bits}
    for panel, maps in enumerate((MAPS, OTHER)):
        for place, (_, number) in enumerate(blocks[panel]):
            attention = maps[number]
            largest, _ = errors(attention, bits)
            for token in range(attention.query.shape[2]):
                for head in range(-1, attention.query.shape[1]):
                    shown = torch.tensor(page.weights(panel, place, head, token))
                    assert (shown - exact(attention, head, token)).abs().max() <= largest + 2e-6
    assert f"{max(errors(m, bits)[0] for m in (*MAPS.values(), *OTHER.values())):.1g} at most" in page.text("#about")


def test_it_opens_with_the_class_token_in_the_last_block_over_the_mean_of_the_heads(page):
    row = exact(MAPS[3], -1, 0)
    patches = row[3:]
    assert page.reading() == (
        "class token",
        named(int(patches.argmax())),
        pytest.approx(float(patches.max()), rel=2e-3),
    )
    assert page.pressed("#tokens") == ["class token"]
    assert page.pressed(".heads") == ["mean over the heads"] and page.pressed(".blocks") == ["block 3"]
    assert f" {100 * float(patches.max() / patches.sum()):.1f} % of what patches get" in page.text(".readout")
    shares = page.text(".shares")
    assert f"{100 * float(patches.sum()):.1f} % on 40 patches" in shares
    assert f"{100 * float(row[:3].sum()):.2f} % on class token and registers" in shares
    assert float(page.text(".top")) == pytest.approx(float(patches.max()), rel=5e-3)
    assert page.one("#scenes").is_displayed() is False


def test_the_query_follows_the_pointer_and_comes_back_when_it_leaves(page):
    before = page.picture()
    page.to_patch(2, 6)
    patches = exact(MAPS[3], -1, 3 + 2 * 8 + 6)[3:]
    assert page.reading() == (
        "row 2, column 6",
        named(int(patches.argmax())),
        pytest.approx(float(patches.max()), rel=2e-3),
    )
    assert (page.picture() != before).any()
    page.leave()
    assert page.reading()[0] == "class token"
    assert (page.picture() == before).all()


def test_a_click_pins_the_query_and_the_pointer_then_reads_its_weights(page):
    page.to_patch(1, 1, click=True)
    patches = exact(MAPS[3], -1, 3 + 1 * 8 + 1)[3:].reshape(GRID)
    for row, column in ((4, 7), (0, 0), (3, 2)):
        page.to_patch(row, column)
        weight = pytest.approx(float(patches[row, column]), abs=2e-4, rel=2e-3)
        assert page.reading() == ("row 1, column 1", f"row {row}, column {column}", weight)
    page.click("#unpin")
    page.leave()
    assert page.one("#unpin").is_displayed() is False
    page.to_patch(4, 0)
    assert page.reading()[0] == "row 4, column 0"
    page.to_patch(4, 0, click=True)
    page.to_patch(4, 0, click=True)
    page.to_patch(0, 5)
    assert page.reading()[0] == "row 0, column 5"


def test_keys_move_the_query_the_block_and_the_head(page):
    page.press(Keys.ARROW_LEFT)
    assert page.reading()[0] == "row 2, column 4"
    page.press(Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_RIGHT)
    assert page.reading()[0] == "row 0, column 5"
    page.press("[", "[", "]", Keys.PAGE_UP)
    assert page.pressed(".blocks") == ["block 1"]
    page.press("2")
    assert page.pressed(".heads") == ["head 2"]
    patches = exact(MAPS[1], 2, 3 + 5)[3:]
    assert page.reading()[2] == pytest.approx(float(patches.max()), rel=2e-3)
    page.press(Keys.PAGE_DOWN, Keys.PAGE_DOWN, Keys.PAGE_DOWN, "h")
    assert (page.pressed(".blocks"), page.pressed(".heads")) == (["block 3"], ["mean over the heads"])
    page.press("H")
    assert page.pressed(".heads") == ["head 2"]
    page.press("9", "m")
    assert page.pressed(".heads") == ["mean over the heads"]
    for key, token in (("r", "register 1"), ("r", "register 2"), ("r", "register 1"), ("c", "class token")):
        page.press(key)
        assert (page.reading()[0], page.pressed("#tokens")) == (token, [token])
    assert "class token" in page.run("return document.getElementById('said').textContent")


def test_t_goes_to_the_slider_whose_arrows_do_not_move_the_query(page):
    page.press("t")
    assert page.run("return document.activeElement.id") == "mass"
    page.press(*[Keys.ARROW_LEFT] * 40)
    assert page.text('output[for="mass"]') == "60 %"
    assert page.reading()[0] == "class token"
    patches = exact(MAPS[3], -1, 0)[3:].reshape(GRID)
    kept = mass_mask(patches, 0.6)
    assert f"on {int(kept.sum())} of 40 patches" in page.text(".shares")
    marked = page.run("return Array.from(keptPatches(weights(panels[0].model.blocks[3], -1, 0).subarray(3), 0.6))")
    assert torch.equal(torch.tensor(marked).bool().reshape(GRID), kept)
    page.press(Keys.ESCAPE)
    page.press(Keys.ARROW_DOWN)
    assert page.reading()[0] == "row 2, column 4"


def test_dragging_the_slider_darkens_what_is_not_kept_and_draws_its_edge(page):
    before = page.picture()
    assert page.one(".stage path").get_attribute("d") == ""
    slider = page.one("#mass")
    width = slider.rect["width"]
    chain = ActionChains(page.driver, 0).move_to_element_with_offset(slider, round(width / 2) - 9, 0)
    chain.click_and_hold().move_by_offset(-round(width / 2), 0).release().perform()
    page.settle()
    assert 30 <= int(page.text('output[for="mass"]').split()[0]) <= 70
    assert page.one(".stage path").get_attribute("d").startswith("M")
    assert (np.abs(page.picture() - before).max(-1) > 20).mean() > 0.02


def test_tiles_choose_the_head_and_the_block(page):
    page.click(".heads button", 2)
    page.click(".blocks button", 0)
    assert (page.pressed(".heads"), page.pressed(".blocks")) == (["head 1"], ["block 0"])
    assert page.text(".heads-title") == "Heads of block 0" and page.text(".blocks-title") == "Blocks, head 1"
    patches = exact(MAPS[0], 1, 0)[3:]
    assert page.reading()[2] == pytest.approx(float(patches.max()), rel=2e-3)
    tiles = [page.run("return arguments[0].toDataURL()", canvas) for canvas in page.all(".tiles canvas")]
    assert len(tiles) == 4 + 4
    assert len(set(tiles)) == 7  # head 1 of block 0 stands among the heads and among the blocks


def test_the_heat_has_a_pixel_for_each_patch_and_none_for_other_tokens(page):
    url = page.run("return document.querySelector('.heat').toDataURL()")
    heat = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))
    assert heat.shape == (*GRID, 4)
    patches = exact(MAPS[3], -1, 0)[3:].reshape(GRID)
    brightness = torch.tensor(heat[..., :3].astype(float)).sum(-1)
    assert brightness.argmax() == patches.argmax()
    few = page.picture()
    assert len(np.unique(few.reshape(-1, 3), axis=0)) > 1000


def test_the_heat_gives_way_to_the_photograph(page):
    with_heat = page.picture()
    page.run("choose({ opacity: 0 })")
    page.settle()
    without = page.picture()
    photo = np.asarray(Image.fromarray(WIDE).resize(without.shape[1::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(without - photo).mean() < 6
    assert np.abs(with_heat - photo).mean() > 40


def test_two_models_are_asked_at_the_same_place_of_the_photograph(two):
    assert [each.text for each in two.all(".panel h2")] == ["model", "other"]
    assert [each.text for each in two.all(".panel .note")] == ["", ("a note " * 40).strip()]
    left, right = (each.rect for each in two.all(".stage"))
    assert left["y"] == right["y"] and left["width"] == right["width"] and left["x"] + left["width"] <= right["x"]
    two.to_patch(2, 2, grid=OTHER_GRID, panel=1)
    assert two.reading(0)[0] == "row 4, column 6"
    patches = exact(OTHER[1], -1, 1 + 2 * 3 + 2)[1:]
    assert two.reading(1) == (
        "row 2, column 2",
        named(int(patches.argmax()), OTHER_GRID),
        pytest.approx(float(patches.max()), rel=2e-3),
    )


def test_two_models_go_back_from_their_last_blocks_together_and_say_what_one_lacks(two):
    two.press("[", "2")
    assert two.pressed(".blocks") == ["block 2", "block 0"]
    assert two.pressed(".heads") == ["head 2", "mean over the heads"]
    two.press("r")
    assert [each.is_displayed() for each in two.all(".missing")] == [False, True]
    assert two.all(".missing")[1].text == "This model has no register 1: choose a patch."
    assert two.reading(0)[0] == "register 1"


def test_a_model_of_one_head_has_one_tile_of_it(driver, tmp_path):
    scene = Scene("a.jpg", WIDE, [Shown("model", {0: a_map(1, heads=1)})])
    page = Page(driver, tmp_path / "viewer.html", [scene])
    page.press("h", "0")
    assert page.pressed(".heads") == ["head 0"] and len(page.all(".heads button")) == 1
    assert page.text(".blocks-title") == "Blocks, one head"
    largest = float(exact(a_map(1, heads=1), 0, 0)[3:].max())
    assert page.reading()[2] == pytest.approx(largest, rel=2e-3)
    assert page.problems() == []


def test_images_are_switched_and_names_are_only_text(driver, tmp_path):
    tall = Scene(HOSTILE, photograph(240, 420), [Shown(HOSTILE, {0: a_map(5, TALL_GRID)}, note=HOSTILE)])
    page = Page(driver, tmp_path / "viewer.html", [Scene("a.jpg", WIDE, [Shown("model", MAPS)]), tall])
    assert page.text("#which") == "1 of 2"
    page.press("n")
    assert page.text("#which") == "2 of 2"
    assert page.text("#name").startswith("<img src=x onerror=alert(1)></script><script>alert(2)</script>")
    stage = page.one(".stage").rect
    assert stage["width"] / stage["height"] == pytest.approx(240 / 420, rel=0.02)
    page.to_patch(6, 1, grid=TALL_GRID)
    assert page.reading()[0] == "row 6, column 1"
    page.leave()
    page.press("n", "p")
    page.click("#scenes button", 0)
    assert page.text("#name") == "a.jpg"
    assert page.problems() == []


def test_help_opens_by_key_and_by_button_and_closes(page):
    page.press("?")
    assert page.one("#help").is_displayed() and "query patch" in page.text("#help")
    page.press("2")
    assert page.pressed(".heads") == ["mean over the heads"]
    page.press(Keys.ESCAPE)
    assert page.one("#help").is_displayed() is False


def test_the_focus_shows_and_everything_that_can_have_it_has_a_name(page):
    seen = set()
    for _ in range(40):
        page.press(Keys.TAB)
        outline, name = page.run("""
            const it = document.activeElement;
            return [getComputedStyle(it).outlineStyle, it.ariaLabel || it.textContent || it.labels[0].textContent]""")
        if page.run("return document.activeElement === document.body"):
            break
        assert outline == "solid" and name.strip()
        seen.add(page.run("return document.activeElement.id || document.activeElement.className"))
    assert {"mass", "opacity", "brighten", "smooth", "stage"} <= seen


def test_a_phone_has_no_sideways_scrolling_and_a_tap_asks(driver, tmp_path):
    models = [Shown("a_rather_long_name_of_a_model/16", MAPS), Shown("other", OTHER)]
    page = Page(driver, tmp_path / "viewer.html", [Scene("a.jpg", WIDE, models)])
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    page.run("choose({})")
    page.settle()
    assert page.run("return document.documentElement.scrollWidth") == 390
    box = page.run("return document.querySelector('.stage').getBoundingClientRect().toJSON()")
    point = [{"x": box["x"] + 0.99 * box["width"], "y": box["y"] + 0.99 * box["height"]}]
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": point})
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    WebDriverWait(driver, 10, 0.02).until(lambda _: page.reading()[0] != "class token")
    assert (page.reading(0)[0], page.reading(1)[0]) == ("row 4, column 7", "row 2, column 2")
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert page.problems() == []


@pytest.mark.parametrize(("scheme", "bright"), [("light", True), ("dark", False)])
def test_light_and_dark(page, scheme, bright):
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    assert (page.picture("header").mean() > 128) == bright
