import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from dino_ssl.errors import UsageError
from dino_ssl.evaluation import viewer_blocks
from dino_ssl.evaluation.viewer import Scene, Shown, write_viewer
from dino_ssl.models.attention_map import AttentionMap

HOSTILE = "</script><script>alert(1)</script><!--\"'&{{script}}\n\u202e\u2028\udcff.jpg"


def a_map(*, grid=(3, 4), heads=2, width=16, prefix=1, seed=0, sharpness=1.5) -> AttentionMap:
    made = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, heads, prefix + grid[0] * grid[1], width, generator=made) for _ in range(2))
    return AttentionMap(query * sharpness * width**-0.5, key + 3, grid, prefix)


def a_scene(name="a.jpg", *, num_blocks=3, size=(400, 300), models=1, **map_options) -> Scene:
    ramp = np.linspace(0, 255, size[0] * size[1] * 3).astype(np.uint8).reshape(size[1], size[0], 3)
    shown = [
        Shown(f"model {i}", {block: a_map(seed=10 * i + block, **map_options) for block in range(num_blocks)})
        for i in range(models)
    ]
    return Scene(name, ramp, shown)


class Page(HTMLParser):
    """The elements of a page, and the text of each script by its id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: dict[str, str] = {}
        self.title, self._into = "", ""
        self.feed(text)
        self.data = json.loads(self.scripts["page"])

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._into = dict(attrs).get("id", "program") if tag == "script" else tag

    def handle_data(self, data):
        if self._into == "title":
            self.title += data
        elif self._into and self.tags[-1] == "script":
            self.scripts[self._into] = self.scripts.get(self._into, "") + data

    def handle_endtag(self, tag):
        self._into = ""


def write(tmp_path, *scenes, **options) -> tuple[Page, list[str], int]:
    """The page, what was said, and the bytes of the file."""
    path = tmp_path / "new" / "viewer.html"
    said = write_viewer(path, iter(scenes), num_scenes=len(scenes), **options)
    return Page(path.read_text(encoding="utf-8")), said, path.stat().st_size


def unpacked(text: str, attention: AttentionMap, bits: int) -> list[np.ndarray]:
    """Queries and keys as the browser reads them."""
    data, (_, heads, tokens, width) = base64.b64decode(text), attention.query.shape
    scales = np.frombuffer(data[: 8 * heads * tokens], "<f4").reshape(2, heads, tokens, 1)
    whole = np.frombuffer(data[8 * heads * tokens :], f"<i{bits // 8}").reshape(2, heads, tokens, width)
    return list(whole * scales.astype(np.float64))


@pytest.mark.parametrize("bits", [8, 16])
def test_the_weights_of_packed_factors_are_those_of_the_attention_to_the_error_that_is_stated(bits):
    attention = a_map(sharpness=8.0)
    text = viewer_blocks.packed(attention, bits)
    query, key = unpacked(text, attention, bits)
    logits = query @ key.transpose(0, 2, 1)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    difference = np.abs(weights - attention.weights[0].numpy())
    largest, misplaced = viewer_blocks.errors(attention, bits)
    assert 0 < largest < {8: 0.05, 16: 2e-4}[bits]
    assert difference.max() == pytest.approx(largest, rel=1e-2, abs=2e-6)
    assert difference.sum(-1).mean() / 2 == pytest.approx(misplaced, rel=1e-2, abs=2e-6)
    assert len(text) == viewer_blocks.num_bytes(attention, bits)


def test_tokens_of_zeros_are_packed():
    attention = AttentionMap(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), (1, 2), 1)
    assert viewer_blocks.errors(attention, 8) == (0.0, 0.0)


def test_a_page_says_what_each_block_is_and_holds_the_photograph(tmp_path):
    page, said, _ = write(tmp_path, a_scene(prefix=3, models=2), a_scene("b.png", size=(30, 40), grid=(5, 3)))
    assert said == []
    first, second = page.data["scenes"]
    assert [model["title"] for model in first["models"]] == ["model 0", "model 1"]
    expected = {"heads": 2, "keys": 15, "width": 16, "bits": 16, "grid": [3, 4], "number": 2}
    expected |= {"tokens": ["class token", "register 1", "register 2"], "id": "factors-0-1-2"}
    assert first["models"][1]["blocks"][2] == expected
    assert page.scripts.keys() == {"page", "program"} | {
        f"factors-{scene}-{model}-{block}"
        for scene, models in ((0, 2), (1, 1))
        for model in range(models)
        for block in range(3)
    }
    pictures = [Image.open(io.BytesIO(base64.b64decode(each["picture"].split(",")[1]))) for each in (first, second)]
    assert [(picture.format, *picture.size) for picture in pictures] == [("JPEG", 400, 300), ("PNG", 30, 40)]
    assert np.array_equal(np.asarray(pictures[1]), a_scene(size=(30, 40)).pixels)


def test_registers_without_a_class_token_are_called_registers(tmp_path):
    attention = a_map(prefix=2)
    alone = AttentionMap(attention.query, attention.key, attention.grid, 2, has_class_token=False)
    page, _, _ = write(tmp_path, Scene("a", a_scene().pixels, [Shown("m", {5: alone})]))
    assert page.data["scenes"][0]["models"][0]["blocks"][0]["tokens"] == ["register 1", "register 2"]


def test_names_can_end_no_element_and_fill_no_place_of_the_template(tmp_path):
    scene = a_scene(HOSTILE, num_blocks=1)
    hostile = Scene(scene.name, scene.pixels, [Shown(HOSTILE, scene.models[0].maps, note="</script>")])
    page, _, _ = write(tmp_path, hostile)
    assert page.tags.count("script") == 3
    shown = page.data["scenes"][0]
    assert shown["name"] == shown["models"][0]["title"]
    assert shown["name"].startswith("</script><script>alert(1)") and "\n" not in shown["name"]
    assert shown["models"][0]["note"] == "</script>"
    assert page.title == f"Attention: {shown['name']}"


def test_a_page_asks_for_nothing_outside_itself(tmp_path):
    write(tmp_path, a_scene())
    text = (tmp_path / "new" / "viewer.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert set(re.findall(r"\b(?:src|href|url)\s*[=(]\s*[\"']?(\w+:)?", text)) <= {"", "data:"}
    assert not re.search(r"https?://(?!www\.w3\.org)", text)


def gives_way(tmp_path, budget) -> tuple[int, int, int, list[str]]:
    """Bits, blocks and the picture's width on a page of so many bytes, and what was said."""
    page, said, size = write(tmp_path, a_scene(num_blocks=6, size=(1600, 1200), grid=(12, 16), width=64), budget=budget)
    assert size <= budget
    shown = page.data["scenes"][0]
    blocks = shown["models"][0]["blocks"]
    assert [block["number"] for block in blocks] == list(range(6))[-len(blocks) :]
    assert all(sentence.rpartition(": ")[2] in shown["about"] for sentence in said)
    picture = Image.open(io.BytesIO(base64.b64decode(shown["picture"].split(",")[1])))
    return blocks[0]["bits"], len(blocks), picture.width, said


def test_first_precision_gives_way_then_blocks_from_the_front_then_the_picture(tmp_path):
    found = [gives_way(tmp_path, budget) for budget in (1_400_000, *range(700_000, 180_000, -30_000))]
    bits, blocks, widths, said = zip(*found, strict=True)
    assert found[0] == (16, 6, 1600, [])
    assert {sentences == [] for sentences, each in zip(said, bits, strict=True) if each == 16} == {True}
    best = [(width, each, number) for width, each, number in zip(widths, bits, blocks, strict=True)]
    assert best == sorted(best, reverse=True)
    assert set(widths) == {1600, 800, 400}
    assert set(zip(bits, blocks, strict=True)) == {(16, 6), *((8, n) for n in range(1, 7))}
    assert "the last 5 of 6 blocks and 8 bits for each number instead of 16" in str(said)


def test_images_share_the_bytes_and_one_that_does_not_fit_is_named(tmp_path):
    small = a_scene("small.png", num_blocks=1, size=(30, 20))
    large = a_scene("large.jpg", num_blocks=1, grid=(40, 40), width=64)
    page, said, size = write(tmp_path, small, large, small, budget=300_000)
    assert [scene["name"] for scene in page.data["scenes"]] == ["small.png", "small.png"]
    assert said == ["large.jpg is not in the viewer: the page would become too large"]
    assert size <= 300_000
    assert page.title == "Attention: 2 images"
    with pytest.raises(UsageError, match="no image fits into a viewer of 300,000 bytes"):
        write(tmp_path, large, budget=300_000)


def refused(tmp_path, attention: AttentionMap) -> str:
    with pytest.raises(UsageError) as error:
        write(tmp_path, Scene("a.jpg", a_scene().pixels, [Shown("m", {7: attention})]))
    return str(error.value)


def test_attention_that_the_page_cannot_show_is_refused_with_its_block(tmp_path):
    good = a_map()
    biased = AttentionMap(good.query, good.key, good.grid, 1, bias=torch.zeros(2, 13, 13))
    fewer = AttentionMap(good.query[:, :, :5], good.key, good.grid, 1)
    several = AttentionMap(good.query.repeat(2, 1, 1, 1), good.key.repeat(2, 1, 1, 1), good.grid, 1)
    broken = AttentionMap(good.query, torch.full_like(good.key, torch.nan), good.grid, 1)
    for attention, reason in (
        (biased, "adds a bias"),
        (fewer, "5 queries for 13 keys"),
        (several, "2 images"),
        (broken, "not finite"),
    ):
        message = refused(tmp_path, attention)
        assert message.startswith("a.jpg: block 7 of m ") and reason in message
