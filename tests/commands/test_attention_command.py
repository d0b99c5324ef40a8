"""`dino-ssl attention` on images of every kind, folders with odd names, and videos, with small random networks."""

import html
import re
from fractions import Fraction
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from dino_ssl.cli import main
from dino_ssl.data.transfer import normalize
from dino_ssl.data.video import open_video, write_video
from dino_ssl.evaluation import heat
from dino_ssl.evaluation.masks import mass_mask
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.weights import load_encoder

ARCH = {"vit.pth": ["--arch", "vit_micro"], "cmt.pth": ["--arch", "cmt_micro"]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A ViT of four blocks and four heads, patches of 8 pixels; and a ResNet."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(build_backbone("vit_micro", image_size=32, patch_size=8).state_dict(), folder / "vit.pth")
    torch.save(build_backbone("resnet18", image_size=32).state_dict(), folder / "resnet.pth")
    torch.save(build_backbone("cmt_micro", image_size=224).state_dict(), folder / "cmt.pth")
    return folder


@pytest.fixture
def draw(weights, tmp_path, monkeypatch):
    """Run the command in a folder of its own; its exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*words, network="vit.pth", size="64"):
        return main(
            ["attention", *map(str, words), "--weights", str(weights / network), "--size", size, *ARCH.get(network, [])]
        )

    return run


def photograph(path, height=48, width=64, mode="RGB", seed=0):
    """A smooth random picture as a file of its own kind."""
    values = np.random.default_rng(seed).random((6, 8, 3))
    picture = Image.fromarray((values * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(path)
    else:
        picture.convert(mode).save(path)
    return path


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def links(page):
    """What a page refers to, as paths."""
    found = re.findall(r'(?:href|src)="([^"]*)"', page.read_text(encoding="utf-8"))
    return [page.parent / unquote(link, errors="surrogateescape") for link in found]


def pixels_of(path):
    return np.asarray(Image.open(path).convert("RGB"))


# -- images --------------------------------------------------------------------------------------------------


def test_the_files_have_the_originals_names_and_each_image_its_folder(draw, tmp_path):
    assert draw(photograph(tmp_path / "dog.jpg"), "--threshold", "0.6") == 0
    which = [*(f"head{head}" for head in range(4)), "mean"]
    expected = [f"{kind}-{name}.png" for kind in ("attn", "overlay") for name in which]
    expected += [f"mask_th0.6_{name}.png" for name in which] + ["img.png", "heads.png", "attention.npz"]
    assert names(tmp_path / "attention") == sorted(["index.html", *(f"dog.jpg/{name}" for name in expected)])


def test_numbers_maps_and_masks_are_the_attention_of_the_class_token(draw, weights, tmp_path):
    assert draw(photograph(tmp_path / "dog.png"), "--threshold", "0.7") == 0
    folder = tmp_path / "attention" / "dog.png"
    image, numbers = pixels_of(folder / "img.png"), np.load(folder / "attention.npz")
    assert image.shape == (56, 72, 3)  # the area of 64 x 64 in whole patches
    encoder = load_encoder(weights / "vit.pth", arch="vit_micro")
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    attention = encoder.backbone.attention(normalize(pixels, encoder.mean, encoder.std), 3)
    maps = attention.weights[0, :, 0, 1:].reshape(4, 7, 9).detach()
    np.testing.assert_allclose(numbers["maps"], maps[None].numpy(), rtol=1e-4)
    assert [numbers[name].tolist() for name in ("grid", "blocks", "heads")] == [[7, 9], [3], [0, 1, 2, 3]]
    assert (str(numbers["query"]), numbers["patch"].tolist()) == ("cls", [-1, -1])
    for head, weight in enumerate(torch.from_numpy(numbers["maps"][0])):
        colours = heat.coloured(heat.unit_range(weight))
        assert (pixels_of(folder / f"attn-head{head}.png") == colours.repeat(8, 0).repeat(8, 1)).all()
        mask = mass_mask(weight, 0.7).numpy().repeat(8, 0).repeat(8, 1)
        assert (pixels_of(folder / f"mask_th0.7_head{head}.png") == heat.masked(image, mask, 1)).all()


def test_any_block_any_head_and_any_patch_can_be_asked(draw, weights, tmp_path):
    words = ["--block", "1,-1", "--block", "1", "--head", "2,-1", "--query", "0.5,0.99"]
    assert draw(photograph(tmp_path / "dog.png"), *words) == 0
    folder = tmp_path / "attention" / "dog.png"
    numbers, image = np.load(folder / "attention.npz"), pixels_of(folder / "img.png")
    assert (numbers["blocks"].tolist(), numbers["heads"].tolist()) == ([1, 3], [2, 3])
    assert numbers["patch"].tolist() == [6, 4]
    encoder = load_encoder(weights / "vit.pth", arch="vit_micro")
    images = normalize(torch.from_numpy(image.copy()).permute(2, 0, 1)[None], encoder.mean, encoder.std)
    for block, found in zip((1, 3), numbers["maps"], strict=True):
        row = encoder.backbone.attention(images, block).weights[0, 2:, 1 + 6 * 9 + 4, 1:]
        np.testing.assert_allclose(found, row.detach().reshape(2, 7, 9), rtol=1e-4)
    written = names(folder)
    assert "layers.png" in written and "block1/heads.png" in written and "block3/attn-head2.png" in written
    assert "block1/attn-head0.png" not in written
    page = (tmp_path / "attention" / "index.html").read_text(encoding="utf-8")
    assert all(f">{name}</a>" in page for name in ("block1/heads.png", "block3/heads.png", "attention.npz"))


@pytest.mark.parametrize(
    ("image", "shape"),
    [
        (("grey.png", "L", 48, 64), (56, 72)),
        (("sixteen bits.png", "I;16", 48, 64), (56, 72)),
        (("transparent.png", "RGBA", 48, 64), (56, 72)),
        (("palette.gif", "P", 64, 48), (72, 56)),
        (("portrait.jpg", "RGB", 90, 30), (112, 40)),
        (("one pixel.png", "RGB", 1, 1), (64, 64)),
        (("panorama.png", "RGB", 4, 4000), (8, 2024)),
        (("large.jpg", "RGB", 3000, 4000), (56, 72)),
    ],
)
def test_images_of_every_kind_and_size_keep_their_aspect(image, shape, draw, tmp_path):
    file, mode, height, width = image
    assert draw(photograph(tmp_path / file, height, width, mode)) == 0
    assert pixels_of(tmp_path / "attention" / file / "img.png").shape[:2] == shape


def test_the_original_square_is_an_option(draw, tmp_path):
    assert draw(photograph(tmp_path / "a.png", 40, 160), "--square") == 0
    assert pixels_of(tmp_path / "attention" / "a.png" / "img.png").shape == (64, 64, 3)


def test_a_photograph_of_a_camera_held_on_its_side_is_upright(draw, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photograph(tmp_path / "plain.png")).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    assert draw(tmp_path / "turned.jpg") == 0
    assert pixels_of(tmp_path / "attention" / "turned.jpg" / "img.png").shape[:2] == (72, 56)


def test_images_of_the_same_name_keep_folders_of_their_own_whatever_their_names(draw, tmp_path, capsys):
    odd = ["in put/ä #1%20.png", "in put/b/same.png", "in put/c/same.png", "in put/c/same.jpg", "in put/<b>&.png"]
    for number, name in enumerate(odd):
        photograph(tmp_path / name, seed=number)
    (tmp_path / "in put" / "broken <i>.png").write_bytes(b"no image")
    assert draw("in put", tmp_path / "in put" / "b" / ".." / "b" / "same.png") == 0
    out = tmp_path / "attention"
    found = [pixels_of(out / name.removeprefix("in put/") / "img.png") for name in odd]
    assert len({picture.tobytes() for picture in found}) == len(odd)
    said = capsys.readouterr()
    assert "skipped in put/broken <i>.png: not an image" in said.err
    assert f"drawn: {len(odd)}, skipped: 1; look at attention/index.html" in said.out
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "broken <i>" not in page and "broken <i>" in html.unescape(page)
    assert len(links(out / "index.html")) >= 2 * len(odd) and all(path.is_file() for path in links(out / "index.html"))


def test_files_from_several_folders_are_told_apart_by_what_differs_in_their_paths(draw, tmp_path):
    paths = [photograph(tmp_path / name / "x.png") for name in ("one/deep", "two")]
    assert draw(*paths, "--output-dir", "out") == 0
    assert [path for path in names(tmp_path / "out") if path.endswith("img.png")] == [
        "one/deep/x.png/img.png",
        "two/x.png/img.png",
    ]


def test_every_stage_of_a_cmt_is_drawn_with_its_own_number_of_heads(weights, draw, tmp_path):
    path = photograph(tmp_path / "a.png")
    assert draw(path, "--block", "all", network="cmt.pth") == 0
    found = np.load(tmp_path / "attention" / "a.png" / "attention.npz")
    assert found["maps"].shape == (5, 8, *found["grid"]) and found["query"] == "mean"
    assert [int(np.isfinite(block).all((1, 2)).sum()) for block in found["maps"]] == [1, 2, 4, 4, 8]
    encoder = load_encoder(weights / "cmt.pth", arch="cmt_micro")
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "attention" / "a.png" / "img.png"))).permute(2, 0, 1)
    images = normalize(pixels[None], encoder.mean, encoder.std)
    for block, maps in enumerate(found["maps"]):
        weights_of_block = encoder.backbone.attention(images, block).weights[0]
        heads = len(weights_of_block)
        np.testing.assert_allclose(maps[:heads].reshape(heads, -1), weights_of_block.mean(1).numpy(), atol=1e-6)
    assert draw(path, "--block", "0", "--query", "0.4,0.9", "--viewer", "--output-dir", "asked", network="cmt.pth") == 0
    assert (tmp_path / "asked" / "viewer.html").is_file()


def test_a_network_without_attention_shows_similarity_as_one_head(draw, tmp_path):
    assert draw(photograph(tmp_path / "a.png"), network="resnet.pth", size="128") == 0
    numbers = np.load(tmp_path / "attention" / "a.png" / "attention.npz")
    assert numbers["maps"].shape == (1, 1, 3, 5) and numbers["blocks"].tolist() == [0]  # 96 x 160 pixels
    assert names(tmp_path / "attention" / "a.png") == [
        "attention.npz", "attn-head0.png", "heads.png", "img.png", "overlay-head0.png",
    ]  # fmt: skip


def test_pca_paints_all_images_and_a_page(draw, tmp_path):
    for number in range(3):
        photograph(tmp_path / "photos" / f"{number}.png", 40 + 16 * number, 64, seed=number)
    assert draw("photos", "--pca", "--foreground") == 0
    for number in range(3):
        painted = pixels_of(tmp_path / "attention" / f"{number}.png" / "pca.png")
        assert painted.shape == pixels_of(tmp_path / "attention" / f"{number}.png" / "img.png").shape
        squares = painted.reshape(painted.shape[0] // 8, 8, painted.shape[1] // 8, 8, 3)
        assert (squares == squares[:, :1, :, :1]).all() and painted.any()
    assert tmp_path / "attention" / "pca.png" in links(tmp_path / "attention" / "index.html")


def test_the_viewer_holds_all_blocks_of_both_networks_and_the_page_leads_to_it(draw, weights, tmp_path):
    odd = photograph(tmp_path / "photos" / "<b>.png")
    photograph(tmp_path / "photos" / "other.png", 90, 30)
    assert draw(odd.parent, "--viewer", "--compare", weights / "resnet.pth") == 0
    viewer = tmp_path / "attention" / "viewer.html"
    assert viewer in links(tmp_path / "attention" / "index.html")
    page = viewer.read_text(encoding="utf-8")
    assert "vit_micro/8" in page and "resnet18" in page and "other.png" in page and "<b>.png" not in page


def test_blocks_that_only_one_of_two_networks_has_are_refused_before_anything_is_drawn(draw, weights, tmp_path, capsys):
    words = ["--viewer", "--block", "2", "--compare", weights / "resnet.pth"]
    assert draw(photograph(tmp_path / "a.png"), *words) == 2
    assert "block=2 must lie in 0 to 0" in capsys.readouterr().err
    assert not list(tmp_path.rglob("img.png"))


# -- videos --------------------------------------------------------------------------------------------------


def film(path, count=12, rate=Fraction(10)):
    """A square that wanders over a smooth picture."""
    ground = pixels_of(photograph(path.parent / "ground" / "ground.png", 48, 64))
    with write_video(path, rate) as write:
        for number in range(count):
            frame = ground.copy()
            frame[10:26, 4 * number : 4 * number + 16] = (255, 80, 0)
            write(frame)
    return path


def frames_of(path):
    with open_video(path) as video:
        return video.rate, list(video.frames)


@pytest.mark.parametrize(("source", "words", "result"), [
    ("film.mp4", [], "attention.mp4"),
    ("film.gif", [], "attention.gif"),
    ("film.mp4", ["--video-format", "gif"], "attention.gif"),
])  # fmt: skip
def test_a_video_becomes_a_video_of_its_own_rate_beside_its_frames(source, words, result, draw, tmp_path):
    assert draw(film(tmp_path / source), *words, "--max-frames", "9") == 0
    rate, frames = frames_of(tmp_path / "attention" / source / result)
    assert rate == 10 and len(frames) == 9
    assert frames[0].shape == (56 * 4, 72 * 4 * 2 + 8, 3)  # enlarged to 200 pixels and more
    assert links(tmp_path / "attention" / "index.html") == [tmp_path / "attention" / source / result] * (
        1 + result.endswith("gif")
    )


def test_the_first_frame_of_a_video_is_the_map_of_that_image(draw, tmp_path):
    frame = frames_of(film(tmp_path / "film.gif"))[1][0]
    Image.fromarray(frame).save(tmp_path / "frame.png")
    assert draw("frame.png", "film.gif", "--video-shows", "map", "--head", "1,2") == 0
    found = frames_of(tmp_path / "attention" / "film.gif" / "attention.gif")[1][0]
    expected = pixels_of(tmp_path / "attention" / "frame.png" / "attn-mean.png").repeat(4, 0).repeat(4, 1)
    assert (found == expected).all()


def test_folders_of_frames_are_videos_if_they_are_given_a_rate(draw, tmp_path):
    for number, frame in enumerate(frames_of(film(tmp_path / "film.gif", count=5))[1]):
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "frames" / f"{number:05}.png")
    assert draw("frames", "--fps", "12.5", "--block", "0,3") == 0
    assert names(tmp_path / "attention") == [
        "frames/attention-block0.mp4", "frames/attention-block3.mp4", "index.html",
    ]  # fmt: skip
    rate, frames = frames_of(tmp_path / "attention" / "frames" / "attention-block0.mp4")
    assert rate == Fraction(25, 2) and len(frames) == 5


def test_a_video_is_drawn_up_to_where_it_is_damaged(draw, tmp_path, capsys):
    path = film(tmp_path / "film.gif", count=12)
    path.write_bytes(path.read_bytes()[:-300])
    assert draw(path) == 0
    assert 1 <= len(frames_of(tmp_path / "attention" / "film.gif" / "attention.gif")[1]) < 12
    assert "film.gif: damaged" in capsys.readouterr().err


# -- mistakes ------------------------------------------------------------------------------------------------


def test_nothing_that_can_be_read_is_a_failure(draw, tmp_path, capsys):
    for name in ("a.png", "b.mp4"):
        (tmp_path / name).write_bytes(b"nothing")
    assert draw("a.png", "b.mp4") == 1
    assert "none of the 2 inputs can be read; the first is a.png: not an image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["missing.png", "gone.png"], "missing.png does not exist\nerror: gone.png does not exist"),
        (["empty"], "empty holds no image (jpg, jpeg, png"),
        (["a.png", "--block", "4"], "block=4 must lie in 0 to 3, or count from the last as -1"),
        (["a.png", "--block", "x"], "--block: 'x' must be whole numbers between commas, such as 0,5"),
        (["a.png", "--head", "4"], "head=4 must lie in 0 to 3"),
        (["a.png", "--query", "register1"], "query=register1: this network has a class token and no registers"),
        (["a.png", "--query", "1,2"], "--query: '1,2' must be cls, mean, register1 (2, 3, ...), or X,Y"),
        (["a.png", "--threshold", "0"], "--threshold: '0' must be a number above 0 and up to 1"),
        (["a.png", "--foreground"], "--foreground goes with --pca"),
        (["a.png", "--compare", "b.pth"], "--compare goes with --viewer"),
        (["a.png", "--max-frames", "3"], "go with videos, and there is none"),
        (["a.png", "--fps", "3"], "--fps goes with folders of frames, and there is none"),
        (["film.gif", "--pca"], "--pca and --viewer go with images"),
        ([".", "--output-dir", "out"], "output_dir=out lies in the folder of images"),
        (["--output-dir", "out"], "the following arguments are required: PATH"),
    ],
)
def test_mistakes_are_named_and_nothing_is_drawn(words, answer, draw, tmp_path, capsys):
    photograph(tmp_path / "a.png")
    film(tmp_path / "film.gif", count=2)
    (tmp_path / "empty").mkdir()
    assert draw(*words) == 2
    assert answer in capsys.readouterr().err
    assert not list(tmp_path.rglob("img.png"))


def test_an_image_that_does_not_go_through_says_what_does(weights, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    fixed = build_backbone("timm/coatnet_pico_rw_224", image_size=224)
    torch.save(fixed.model.state_dict(), tmp_path / "fixed.pth")
    monkeypatch.chdir(tmp_path)
    words = ["--weights", "fixed.pth", "--arch", "timm/coatnet_pico_rw_224"]
    assert main(["attention", str(photograph(tmp_path / "a.png")), *words]) == 1
    assert "write --square --size 224" in capsys.readouterr().err
