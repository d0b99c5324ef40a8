"""Files made to do harm: nothing in them runs, leads elsewhere, or fills the memory. See docs/security.md."""

import io
import json
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]
from PIL import Image
from test_architecture import sources, used_names

from dino_ssl.cli import main
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.config_yaml import read_layer
from dino_ssl.data import unpickling
from dino_ssl.data.davis import open_davis
from dino_ssl.data.decoding import BrokenImage, decode
from dino_ssl.data.masks import read_mask
from dino_ssl.data.tar.pack_file import read_pack_file
from dino_ssl.data.tar.shards import open_shards
from dino_ssl.data.video import open_video, write_video
from dino_ssl.errors import UsageError
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.weight_files import read_weight_file
from dino_ssl.models.weights import load_encoder

# -- pickles -------------------------------------------------------------------------------------------------


class Called:
    """A pickle in which `function` is called with these arguments, and its result is given a state."""

    def __init__(self, function: Any, arguments: tuple[Any, ...], state: object = None) -> None:
        self.parts = (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


# Eight bytes as a structure of one object, in which the flag that says so is missing.
ADDRESS_AS_OBJECT = Called(
    np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
)  # fmt: skip
PLAIN = Called(np.dtype, ("u1", False, True), (3, "|", None, None, None, -1, -1, 0))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (Called(_frombuffer, (struct.pack("Q", 0x4141414141), ADDRESS_AS_OBJECT, (1,), "C")), "numpy.dtype"),
        (Called(np.dtype, ("f8",), (3, "<", None, ("a",), {"a": (1, 2)}, 8, 1, 0)), "numpy.dtype with fields"),
        (Called(np.dtype, ("O",)), "numpy.dtype with 'O'"),
        (Called(np.dtype, ("i4,O",)), "numpy.dtype with 'i4,O'"),
        (Called(np.ndarray, ((10**12,),)), "numpy.ndarray"),
        (Called(os.system, ("touch ran",)), "system"),
    ],
)
def test_a_pickle_of_arrays_can_describe_numbers_and_text_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("batch").write_bytes(pickle.dumps({"data": content}, protocol=4))
    with pytest.raises(UsageError, match=f"batch wants to call .*{said}"):
        unpickling.load(Path("batch"))
    assert not Path("ran").exists()


def test_an_array_is_filled_once_lest_its_first_bytes_be_read_after_they_were_freed(tmp_path: Path) -> None:
    filled = pickle.dumps(np.arange(3, dtype=np.uint8), protocol=2)
    state = filled[filled.rindex(b"(K\x01") : filled.rindex(b"b.")]  # what the last BUILD takes
    (tmp_path / "twice").write_bytes(b"}X\x01\x00\x00\x00a" + filled[2:-1] + state + b"bs.")
    with pytest.raises(UsageError, match=r"twice wants to call numpy\.ndarray"):
        unpickling.load(tmp_path / "twice")


def test_numbers_and_text_come_out_as_pickle_itself_gives_them(tmp_path: Path) -> None:
    arrays = [
        np.arange(6).reshape(2, 3),
        np.arange(4, dtype=">f4"),
        np.array(["a", "bc"]),
        np.asfortranarray(np.eye(3)),
    ]
    for protocol in range(2, 6):
        (tmp_path / "batch").write_bytes(pickle.dumps({"data": arrays}, protocol=protocol))
        expected_ones = pickle.loads((tmp_path / "batch").read_bytes())["data"]
        for found, expected in zip(unpickling.load(tmp_path / "batch")["data"], expected_ones, strict=True):
            assert found.dtype == expected.dtype and np.array_equal(found, expected)


def test_a_checkpoint_cannot_describe_a_type_of_numpy_either(tmp_path: Path) -> None:
    scalar = Called(np._core.multiarray.scalar, (ADDRESS_AS_OBJECT, bytes(8)))
    torch.save({"model": {"w": torch.zeros(1)}, "lr": scalar}, tmp_path / "evil.pth")
    with pytest.raises(UsageError, match="damaged or no file of PyTorch"):
        read_weight_file(tmp_path / "evil.pth")


# -- weights -------------------------------------------------------------------------------------------------


def odd_tensors() -> dict[str, torch.Tensor]:
    weight = torch.ones(512, 128)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    return {
        "sparse": weight.to_sparse(),
        "without device": weight.to("meta"),
        "quantised": quantised,
        "complex": weight.to(torch.complex64),
        "256 GiB in four bytes": torch.zeros(1).expand(2**36),
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", odd_tensors())
def test_a_tensor_that_is_no_array_of_numbers_in_the_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    weights = build_backbone("vit_micro", image_size=32).state_dict()
    torch.save({**weights, "blocks.0.mlp.fc1.weight": odd_tensors()[kind]}, tmp_path / "odd.pth")
    with pytest.raises(UsageError, match=r"odd\.pth: blocks\.0\.mlp\.fc1\.weight is no tensor of plain numbers"):
        load_encoder(tmp_path / "odd.pth", arch="vit_micro")


def test_a_checkpoint_that_expands_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(10**6)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in stored.namelist():
            bomb.writestr(entry, stored.read(entry))
    assert (tmp_path / "bomb.pth").stat().st_size < 20_000
    with pytest.raises(UsageError, match=r"bomb\.pth is damaged: it would expand to more than it holds"):
        read_weight_file(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "has no argument checkpoint_path"),
        ({"model_args": {"pretrained": True}}, "has no argument pretrained"),
        ({"input_size": [3, 10**6, 10**6]}, "a size from 1 to 8192"),
        ({"std": [0.2, 0.2, 0.0]}, "deviations"),
    ],
)
def test_a_config_beside_weights_cannot_ask_for_other_files_or_for_all_memory(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    images = {"input_size": [3, 32, 32], "crop_pct": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3}
    card = {"architecture": "resnet10t", **images, **changes}
    (tmp_path / "config.json").write_text(json.dumps(card))
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=said):
        load_encoder(tmp_path)


# -- recipes -------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [1, 2]\nb: &b [*a, *a]\nc: &c [*b, *b]\nseed: *c\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: !!python/object/apply:os.system ['touch ran']\n", "could not determine a constructor"),
        ("seed: !!python/name:os.system\n", "could not determine a constructor"),
        (LAUGHS, "recipe.yaml:1: not valid YAML: an alias stands for a list or a section; write it out"),
        ("seed: " + "[" * 5000, "brackets in brackets without end"),
        ("seed: !!int abc\n", 'recipe.yaml:1: not valid YAML: "abc" is no int'),
        ("seed: !!timestamp 2001-99-99\n", '"2001-99-99" is no timestamp'),
        (f"seed: {'1' * 5000}\n", "is no int"),
        (f"optim:\n  lr: {'1' * 400}\n", "must be a number"),
        ('output_dir: "a\\0b"\n', "must be a path, which has no zero byte"),
        ("evaluate: {every_epochs: 1, submit: touch ran}\n", "would be run as a program; write it as a flag"),
    ],
)
def test_a_recipe_runs_nothing_and_whatever_it_holds_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(text)
    assert main(["pretrain", "recipe.yaml", "--data", "digits"]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_an_alias_of_one_value_is_fine(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("epochs: &n 7\noptim: {warmup_epochs: *n}\n")
    layer = read_layer(tmp_path / "recipe.yaml", PRETRAIN)
    assert layer.values == {"epochs": 7, "optim.warmup_epochs": 7.0} and not layer.problems


# -- images and videos ---------------------------------------------------------------------------------------


def png_of_size(side: int) -> bytes:
    """A few bytes that claim `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


GIF_OF_65535 = (
    b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0;"
)  # fmt: skip


@pytest.mark.parametrize("side", [14_000, 30_000, 2**31 - 1])
def test_an_image_that_claims_too_many_pixels_is_refused_wherever_it_is_read(tmp_path: Path, side: int) -> None:
    data = png_of_size(side)
    (tmp_path / "bomb.png").write_bytes(data)
    with pytest.raises(BrokenImage, match=r"pixels|damaged"):
        decode(data, "bomb.png")
    with pytest.raises(UsageError, match=r"bomb\.png"):
        read_mask(tmp_path / "bomb.png")


def test_an_animation_that_claims_too_many_pixels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.gif").write_bytes(GIF_OF_65535)
    with pytest.raises(BrokenImage, match="could be decompression bomb"), open_video(tmp_path / "bomb.gif") as video:
        next(video.frames)


def test_a_play_list_that_is_called_a_video_leads_to_no_other_file(tmp_path: Path) -> None:
    with write_video(tmp_path / "private.mp4", Fraction(5)) as write:
        for grey in range(5):
            write(np.full((32, 32, 3), 50 * grey, np.uint8))
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile private.mp4\n")
    (tmp_path / "hls.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nprivate.mp4\n#EXT-X-ENDLIST\n")
    for name in ("concat.mp4", "hls.mp4"):
        with pytest.raises(BrokenImage, match="no video that can be read"), open_video(tmp_path / name):
            pass
    with open_video(tmp_path / "private.mp4") as video:
        assert len(list(video.frames)) == 5


# -- names ---------------------------------------------------------------------------------------------------


def drawn() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, "PNG")
    return stream.getvalue()


def test_members_of_a_tar_are_read_where_they_lie_whatever_their_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = drawn()
    secret = tmp_path / "secret.png"
    secret.write_bytes(png_of_size(1))
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        for name in ("../../escaped.png", "/absolute.png"):
            member = tarfile.TarInfo(name)
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))
        for name, kind in (("soft.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, str(secret)
            tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    shards = open_shards(str(tmp_path / "in"), "in")
    assert [shards.raw(index) for index in range(len(shards))] == [image, image]
    assert any("links, which hold no image" in problem for problem in shards.problems)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_index_of_shards_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    shard = {"name": "../precious", "first": 0, "end": 1, "samples": 1, "num_bytes": 1, "sha256": "", "skipped": []}
    about = {"made_by": "dino-ssl pack", "format": 1, "complete": False, "source": "", "encoding": "", "options": {}}
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "index.json").write_text(json.dumps({**about, "classes": [], "shards": [shard]}))
    with pytest.raises(UsageError, match="damaged or of another program"):
        read_pack_file(tmp_path / "packed")


def test_a_list_of_sequences_cannot_name_folders_elsewhere(tmp_path: Path) -> None:
    for folder in ("ImageSets/2017", "JPEGImages/480p", "Annotations/480p"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("boxes\n../../../out\n")
    with pytest.raises(UsageError, match=r"'\.\./\.\./\.\./out' is no name of a sequence"):
        open_davis(tmp_path)


def test_an_error_tells_the_terminal_nothing_to_obey(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--data", "\x1b]0;owned\x07\u202efdp.exe"]) == 2
    said = capsys.readouterr().err
    assert "?]0;owned??fdp.exe" in said and not {"\x1b", "\x07", "\u202e"} & set(said)


# -- in place of a promise -----------------------------------------------------------------------------------


def test_no_module_of_the_library_can_reach_the_network_but_two_that_are_asked_to() -> None:
    clients = ("urllib.request", "requests", "http.client", "fsspec", "aiohttp", "datasets", "huggingface_hub")
    users = {
        module
        for module, text in sources().items()
        if any(name == client or name.startswith(f"{client}.") for name in used_names(text) for client in clients)
    }
    assert users == {"data.tar.remote", "data.hugging_face"}
