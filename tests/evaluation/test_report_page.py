import base64
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from dino_ssl.evaluation import protocols
from dino_ssl.evaluation.report_page import Picture, markdown, write_page
from dino_ssl.evaluation.results import Evaluation, Measurement

HOSTILE = "</title><script>alert(1)</script>|\n\udcff"


def an_evaluation(source: str = "cifar10:test", protocol: str = protocols.KNN) -> Evaluation:
    return Evaluation(
        protocol=protocol,
        encoder={"name": "vit_tiny/8", "origin": "run.pth", "digest": "ab12", "size": 32, "center_crop": 1.0},
        data={"queries": {"source": source, "fingerprint": "f", "num_images": 10_000}},
        measurements=[
            Measurement("knn/top1", 0.5504, (0.541, 0.5599), {"k": 20}),
            Measurement("knn/top5", 1.0, None, {"k": 20}),
        ],
        seconds=61.4,
    )


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def write(tmp_path, *evaluations, pictures=(), title="A report") -> Page:
    write_page(tmp_path / "new" / "report.html", title, evaluations, pictures)
    return Page((tmp_path / "new" / "report.html").read_text(encoding="utf-8"))


def test_a_page_has_every_number_with_its_interval_its_protocol_and_its_data(tmp_path):
    text = write(tmp_path, an_evaluation()).text
    for part in ("55.0 %", "[54.1, 56.0]", "100.0 %", "knn/top1 k=20", "cifar10:test (10,000)", "61 s", "ab12"):
        assert part in text
    assert protocols.MEANING[protocols.KNN] in text


def test_a_page_holds_its_pictures_and_asks_for_nothing(tmp_path):
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(tmp_path / "a.png")
    (tmp_path / "b.mp4").write_bytes(b"frames")
    pictures = [Picture(tmp_path / "a.png", "four pixels"), Picture(tmp_path / "b.mp4", "a video")]
    page = write(tmp_path, an_evaluation(), pictures=pictures)
    sources = {tag: attrs["src"] for tag, attrs in page.tags if "src" in attrs}
    assert sources.keys() == {"img", "video"}
    for tag, file in (("img", "a.png"), ("video", "b.mp4")):
        head, data = sources[tag].split(";base64,")
        assert head in ("data:image/png", "data:video/mp4")
        assert base64.b64decode(data) == (tmp_path / file).read_bytes()
    assert not any("href" in attrs for _, attrs in page.tags)
    assert "four pixels" in page.text


def test_names_cannot_end_a_tag(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    page = write(tmp_path, an_evaluation(HOSTILE), pictures=[Picture(tmp_path / "a.png", '"><script>')], title=HOSTILE)
    assert not any(tag == "script" for tag, _ in page.tags)
    assert "alert(1)" in page.text


def test_a_page_of_nothing_says_so(tmp_path):
    assert "Nothing was measured." in write(tmp_path).text


def test_markdown_is_one_row_for_each_number():
    assert markdown([an_evaluation()]).splitlines() == [
        "| protocol | data | metric | value | 95 % interval |",
        "|---|---|---|---:|---|",
        "| knn/1 | queries cifar10:test (10,000) | knn/top1 k=20 | 55.0 % | [54.1, 56.0] |",
        "| knn/1 | queries cifar10:test (10,000) | knn/top5 k=20 | 100.0 % |  |",
    ]
    rows = markdown([an_evaluation(HOSTILE)]).splitlines()
    assert len(rows) == 4 and all(row.replace("\\|", "").count("|") == 6 for row in rows)


def test_every_protocol_has_a_meaning():
    names = {value for name, value in vars(protocols).items() if name.isupper() and isinstance(value, str)}
    assert names == protocols.MEANING.keys()
