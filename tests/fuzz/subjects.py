"""Small real files, made by the tool itself, and what reads them."""

import contextlib
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from corruptions import Subject, put
from PIL import Image
from safetensors.torch import load_file

from dino_ssl import config_yaml
from dino_ssl.checksums import sidecar
from dino_ssl.cli import main
from dino_ssl.config_flags import configure
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.config_schema import flatten
from dino_ssl.data.decoding import MAX_PIXELS, BrokenImage, decode, read
from dino_ssl.data.face_pairs import open_pairs
from dino_ssl.data.faces import write_records
from dino_ssl.data.masks import Mask, default_palette, read_mask, write_mask
from dino_ssl.data.sources import Source, open_source, problems_of
from dino_ssl.data.video import open_video
from dino_ssl.errors import RunError, UsageError
from dino_ssl.models.weight_files import read_weight_file
from dino_ssl.training.checkpoint import CheckpointStore, capture_rng
from dino_ssl.training.journal import Journal

SMALL = (
    "--device cpu --model.name vit_micro --model.patch-size 8 --crops.global-size 16 --crops.num-local-crops 1 "
    "--crops.local-size 8 --head.prototypes 16 --head.hidden-dim 16 --head.bottleneck-dim 8 --batch-size 4 "
    "--optim.warmup-epochs 0 --optim.freeze-last-layer-epochs 0 --loader.num-workers 0 "
    "--checkpoint.every-steps 1 --log.every-steps 1 --knn.every-epochs 0 --checkpoint.keep-last 9"
)
FORMATS = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "bmp": "BMP", "webp": "WEBP", "tif": "TIFF", "ppm": "PPM"}


def said(*words: str) -> tuple[int, str]:
    """Exit code and output of a command, in this process: an exception that escapes is what nobody may see."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(words)
    return code, out.getvalue()


def refused(code: int, text: str) -> str:
    """Checks that a command that failed says why, in the documented way."""
    assert code in (1, 2) and text.startswith("error: "), (code, text)
    return "refused"


def drawn(seed: int, side: int = 20) -> Image.Image:
    """A smooth picture with some noise, as photographs are."""
    dice, ramp = np.random.default_rng(seed), np.linspace(0, 200, side)
    pixels = (
        ramp[:, None, None]
        + np.stack([ramp, ramp[::-1], 0 * ramp], -1)[None] / 5
        + dice.integers(0, 15, (side, side, 3))
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_classes(folder: Path, count: int) -> None:
    for number in range(count):
        place = folder / f"class{number % 2}" / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        drawn(number).save(place)


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# -- checkpoints ---------------------------------------------------------------------------------------------


def train(folder: Path, steps: int) -> Path:
    """A run with a checkpoint of every step."""
    draw_classes(folder / "images", 12)
    words = ["--data", str(folder / "images"), "--output-dir", str(folder / "run"), "--steps", str(steps)]
    code, text = said("pretrain", *words, *SMALL.split())
    assert code == 0, text
    return folder / "run"


def a_state(step: int) -> dict[str, Any]:
    """What a run saves, of a network of a few hundred weights."""
    torch.manual_seed(step)
    network = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.BatchNorm1d(24))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 16)).sum().backward()
    optimizer.step()
    weights = {"student": network.state_dict(), "teacher": network.state_dict(), "optimizer": optimizer.state_dict()}
    return {**weights, "step": step, "epoch": 0, "config": {"lr": 0.1, "data": "x"}, "rng": [capture_rng()]}


def checkpoints(folder: Path, *, with_sums: bool) -> Subject:
    """The newest good one is taken, or the older ones are lost to nobody."""
    place, good = folder / "checkpoints", {step: a_state(step) for step in (1, 2, 3)}
    store = CheckpointStore(place, keep_last=9, keep_every=0)
    for step, state in good.items():
        store.save(state, step)
    for path in [] if with_sums else place.glob("*.sha256"):
        path.unlink()

    def look(path: Path, before: bytes) -> str:
        try:
            found = CheckpointStore(place, keep_last=9, keep_every=0).load_latest()
        except RunError:
            return "refused"
        assert found is not None, "checkpoints are there, and a run would begin anew"
        state = found[0]
        assert same(state, good[state["step"]]), "not what was saved"
        # A whole checkpoint under another's name is a whole checkpoint.
        assert state["step"] >= 2 or path.read_bytes() in map(Path.read_bytes, place.glob("*1.pth")), "too old"
        return "same" if state["step"] == 3 else "older"

    files = [path for path in sorted(place.iterdir()) if "000000003" in path.name or path.name == "checkpoint.pth"]
    return Subject(f"checkpoints{'' if with_sums else ' without sums'}", place, files, look)


def resumes(folder: Path) -> Subject:
    """The command goes on from an older checkpoint, and ends where the undisturbed run ended."""
    run = train(folder, 3)
    last = run / "checkpoints" / "checkpoint_000000003.pth"
    weights = torch.load(last, weights_only=True)["student"]
    words = ["pretrain", str(run / "config.yaml")]

    def look(path: Path, before: bytes) -> str:
        put(run / "checkpoints" / "checkpoint.pth", path.read_bytes())
        code, text = said(*words)
        if code:
            return refused(code, text)
        found = CheckpointStore(run / "checkpoints", keep_last=9, keep_every=0).load_latest()
        assert found is not None and same(found[0]["student"], weights), "another end"
        return "resumed"

    def may_change(path: Path) -> bool:
        return not path.name.startswith(("checkpoint_000000001", "checkpoint_000000002"))

    return Subject("resumes", folder, [last], look, may_change, {})


# -- weights -------------------------------------------------------------------------------------------------


def weights(folder: Path) -> Subject:
    """What a run and `export` wrote, through `inspect`: the digest is that of the good file, or it is refused."""
    run = train(folder, 1)
    assert said("export", str(run), "--format", "torch", "--output", str(folder / "vit.pth"))[0] == 0
    assert said("export", str(run), "--format", "timm", "--output", str(folder / "timm"))[0] == 0
    files = [run / "checkpoints" / "checkpoint.pth", folder / "vit.pth", folder / "timm" / "model.safetensors"]
    files += [folder / "timm" / "config.json", sidecar(folder / "timm" / "model.safetensors")]
    words = {path: ["inspect", str(path)] for path in files}
    for path in files[3:]:
        words[path] = ["inspect", str(folder / "timm")]
    words[files[1]] += ["--arch", "vit_micro", "--size", "16"]
    digests = {path: digest_in(said(*words[path])[1]) for path in files}
    assert all(digests.values())
    whole = {path.read_bytes() for path in files}

    def look(path: Path, before: bytes) -> str:
        code, text = said(*words[path])
        if code:
            return refused(code, text)
        if digest_in(text) != digests[path]:
            assert path.read_bytes() in whole and digest_in(text) in digests.values(), text
            return "another good file"
        return "same"

    return Subject("weights", folder, files, look)


def digest_in(text: str) -> str:
    return next((line.split()[1] for line in text.splitlines() if line.startswith("digest")), "")


def bare_weights(folder: Path) -> Subject:
    """Formats without checksums: what is not refused has the good file's names and shapes, or says so itself."""
    tensors = {f"layer{n}.weight": torch.arange(n * 12.0).reshape(n, 12) for n in range(1, 9)}
    folder.mkdir(parents=True)
    from safetensors.torch import save_file  # noqa: PLC0415

    save_file(tensors, folder / "a.safetensors")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    np.savez(folder / "a.npz", **{name: value.numpy() for name, value in tensors.items()})

    def look(path: Path, before: bytes) -> str:
        try:
            found = read_weight_file(path).content
        except UsageError:
            return "refused"
        if path.suffix == ".npz":
            assert same(found, tensors), "an archive with checksums"
            return "same"
        return "same" if found.keys() == tensors.keys() and same(found, tensors) else "cannot be told"

    assert same(load_file(folder / "a.safetensors"), tensors)
    return Subject("weights without sums", folder, sorted(folder.iterdir()), look)


# -- recipes -------------------------------------------------------------------------------------------------


def recipes(folder: Path) -> Subject:
    """Each line of what is accepted has its effect: nothing is ignored, nothing is taken for something else."""
    folder.mkdir(parents=True)
    root = Path(__file__).parents[2]
    for recipe in sorted((root / "launch" / "recipes").glob("*.yaml")):
        (folder / recipe.name).write_bytes(recipe.read_bytes())
    config_yaml.write_config(configure(["--preset", "digits"], PRETRAIN)[0], folder / "config.yaml")

    def look(path: Path, before: bytes) -> str:
        try:
            config = flatten(config_yaml.read_config([path]))
        except UsageError as error:
            assert all(problem.strip() for problem in error.problems)
            return "refused"
        for key, text in leaves(yaml.load(path.read_text("utf-8"), yaml.BaseLoader) or {}):
            assert key == "preset" or means(text, config[key]), f"{key}: {text!r} became {config[key]!r}"
        return "another recipe"

    return Subject("recipes", folder, sorted(folder.iterdir()), look)


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        elif not (value in ("", "null", "~") and prefix == ""):
            yield prefix + name, value


def means(text: Any, value: Any) -> bool:
    """Whether the text of a file can mean this value, by Python's own idea of numbers."""
    if isinstance(value, tuple):
        return len(text) == len(value) and all(map(means, text, value))
    if isinstance(value, bool) or value is None:
        return text.lower() in ({"true", "false"} if value is not None else {"", "null", "~"})
    if isinstance(value, int | float):
        return float(text) == float(value)
    return text == str(value) or str(Path(text).expanduser()) == str(value)


# -- images --------------------------------------------------------------------------------------------------


def images(folder: Path) -> Subject:
    """Pixels, or a reason; of PNG, which has checksums, the pixels that were saved."""
    folder.mkdir(parents=True)
    for ending, name in FORMATS.items():
        drawn(1).save(folder / f"a.{ending}", name)
    exif = Image.Exif()
    exif[0x0112] = 6
    drawn(2, 64).save(folder / "turned.jpg", exif=exif, progressive=True)
    drawn(3).convert("P").save(folder / "palette.png")
    good = np.asarray(drawn(1))

    def look(path: Path, before: bytes) -> str:
        try:
            found = decode(read(path), path.name)
        except BrokenImage as error:
            assert error.reason
            return "broken"
        assert found.pixels.dtype == np.uint8 and found.pixels.shape[2] == 3
        assert found.pixels.size <= 3 * MAX_PIXELS
        if path.name == "a.png" and path.read_bytes()[:8] == before[:8]:
            assert np.array_equal(found.pixels, good) or is_png_of(path, folder), "other pixels of a PNG"
            return "same"
        return "cannot be told"

    return Subject("images", folder, sorted(folder.iterdir()), look)


def is_png_of(path: Path, folder: Path) -> bool:
    """Whether the other PNG was put in its place, whole."""
    return path.read_bytes() == (folder / "palette.png").read_bytes()


def masks_and_animations(folder: Path) -> Subject:
    folder.mkdir(parents=True)
    write_mask(folder / "mask.png", Mask(np.arange(400, dtype=np.uint8).reshape(20, 20) % 3, default_palette()))
    frames = [drawn(seed).quantize() for seed in range(4)]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:], duration=50)

    def look(path: Path, before: bytes) -> str:
        try:
            if path.suffix == ".png":
                assert read_mask(path).numbers.dtype == np.uint8
            else:
                with open_video(path) as video:
                    assert all(frame.shape[2] == 3 for frame in video.frames)
        except (BrokenImage, UsageError) as error:
            assert str(error)
            return "refused"
        return "cannot be told"

    return Subject("masks and animations", folder, sorted(folder.iterdir()), look)


def folders(folder: Path) -> Subject:
    """`stats` counts the broken image, and goes on with the others."""
    draw_classes(folder / "images", 6)
    drawn(9).save(folder / "images" / "class0" / "z.jpg")

    def look(path: Path, before: bytes) -> str:
        code, text = said("stats", str(folder / "images"), "--output-dir", str(folder / "out"))
        assert code == 0, text
        return "counted" if "unreadable: 1" in " ".join(text.split()) or "broken" in text else "used"

    files = sorted((folder / "images").rglob("*.*"))
    return Subject("folders", folder, files, look, lambda path: "out" in path.relative_to(folder).parts)


# -- shards and arrays ---------------------------------------------------------------------------------------


def shards(folder: Path) -> Subject:
    """A sample is the one that was packed, or broken, or its own bytes changed, which --verify tells."""
    draw_classes(folder / "images", 12)
    packed = folder / "packed"
    code, text = said("pack", str(folder / "images"), "--output", str(packed), "--samples-per-shard", "5")
    assert code == 0, text
    good = samples_in(packed)
    assert isinstance(good, dict) and len(good) == 12

    def look(path: Path, before: bytes) -> str:
        if path.suffix == ".tar":
            assert said("pack", "--verify", str(packed))[0] == 1, "--verify finds nothing"
        found = samples_in(packed)
        if isinstance(found, str):
            return "refused"
        if path.suffix == ".tar":
            for name, sample in found.items():
                told = sample == good.get(name) or sample[0] is None or bool(said_of(packed))
                assert told or sample[0] in path.read_bytes(), name
            return "same" if found == good else "told or changed"
        assert found == good or said_of(packed), (found, good)
        return "same" if found == good else "told"

    return Subject("shards", packed, sorted(packed.iterdir()), look)


def samples_in(packed: Path) -> dict[str, tuple[Any, str]] | str:
    """Image and class by name; or why there is nothing."""
    try:
        source = open_source(str(packed), Path("data"))
    except UsageError as error:
        return str(error)
    found: dict[str, tuple[Any, str]] = {}
    for index in range(len(source)):
        try:
            raw: Any = source.raw(index)
        except BrokenImage:
            raw = None
        label = "" if source.labels is None else source.classes[int(source.labels[index])]
        found[source.describe(index)] = (raw, label)
    return found


def said_of(packed: Path) -> tuple[str, ...]:
    return problems_of(open_source(str(packed), Path("data")))


def arrays(folder: Path) -> Subject:
    """CIFAR's pickles, NumPy's arrays and MNIST's files: images and labels that fit each other, or a refusal."""
    cifar, dice = folder / "cifar-10-batches-py", np.random.default_rng(0)
    cifar.mkdir(parents=True)
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    for protocol, name in enumerate(names):
        batch = {b"data": dice.integers(0, 256, (3, 3072), dtype=np.uint8), b"labels": [0, 1, 2]}
        (cifar / name).write_bytes(pickle.dumps(batch, protocol=min(protocol, 5)))
    meta = {b"label_names": [f"c{n}".encode() for n in range(10)]}
    (cifar / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    (folder / "npy").mkdir()
    np.save(folder / "npy" / "x_train.npy", dice.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8))
    np.save(folder / "npy" / "y_train.npy", np.arange(6))

    def look(path: Path, before: bytes) -> str:
        try:
            split = ":test" if path.name == "test_batch" else ""
            source = open_source(f"{path.parent}{split}", folder)
            assert source.labels is not None and len(source.labels) == len(source)
            assert 0 <= source.labels.min() <= source.labels.max() < len(source.classes)
            assert all(isinstance(source.raw(index), np.ndarray) for index in range(len(source)))
        except UsageError:
            return "refused"
        return "cannot be told"

    return Subject("arrays", folder, [*sorted(cifar.iterdir()), *sorted((folder / "npy").iterdir())], look)


def faces(folder: Path) -> Subject:
    """InsightFace's files have no checksums: what is read of them fits together, or it is refused or told."""
    folder.mkdir(parents=True)
    pictures = [encoded(drawn(seed)) for seed in range(12)]
    write_records(folder / "train.rec", [(picture, place // 3) for place, picture in enumerate(pictures)])
    (folder / "pairs.bin").write_bytes(pickle.dumps((pictures, [True, False] * 3), protocol=4))

    def look(path: Path, before: bytes) -> str:
        try:
            if path.suffix == ".bin":
                source: Source = open_pairs(str(path), folder).images
            else:
                source = open_source(str(folder / "train.rec"), folder)
                assert source.labels is not None and len(source.labels) == len(source)
                assert 0 <= source.labels.min() <= source.labels.max() < len(source.classes)
        except UsageError as error:
            assert path.stem.partition(".")[0] in str(error) or "property" in str(error)
            return "refused"
        found = [image_of(source, index) for index in range(len(source))]
        if sorted(filter(None, found)) == sorted(pictures):
            return "same"
        return "told" if problems_of(source) else "broken" if None in found else "cannot be told"

    return Subject("faces", folder, sorted(folder.iterdir()), look)


def image_of(source: Source, index: int) -> bytes | None:
    try:
        raw = source.raw(index)
        decode(raw, "face")
    except BrokenImage:
        return None
    assert isinstance(raw, bytes)
    return raw


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG")
    return stream.getvalue()


def run_files(folder: Path) -> Subject:
    """`runs` says what can still be read; a resume drops damaged lines of the journal and no other."""
    run = train(folder, 2)
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    kept = [line for line in (run / "metrics.jsonl").read_bytes().splitlines() if line]
    files = [run / name for name in ("config.yaml", "run.json", "metrics.jsonl", "restarts.jsonl", "heartbeat.json")]

    def look(path: Path, before: bytes) -> str:
        shows = [said("runs", *words) for words in (("ls", str(run)), ("show", str(run)))]
        if path.name == "metrics.jsonl":
            damaged = path.read_bytes()
            journal = Journal(run, every_steps=1, total_steps=2, images_per_step=4, is_main=True)
            journal.resume_at(10**9, 10**9)
            left = set(path.read_bytes().splitlines())
            put(path, damaged)
            whole = [line for line in kept if line in damaged.splitlines()]
            assert all(line in left for line in whole), "good lines of the journal are gone"
        return " ".join(refused(*show) if show[0] else "shown" for show in shows)

    return Subject("run files", run, files, look)


MAKERS: dict[str, tuple[Callable[[Path], Subject], int]] = {
    "checkpoints": (lambda folder: checkpoints(folder, with_sums=True), 70),
    "checkpoints without sums": (lambda folder: checkpoints(folder, with_sums=False), 70),
    "resumes": (resumes, 4),
    "weights": (weights, 50),
    "weights without sums": (bare_weights, 50),
    "recipes": (recipes, 80),
    "images": (images, 96),
    "masks and animations": (masks_and_animations, 30),
    "folders": (folders, 6),
    "shards": (shards, 70),
    "arrays": (arrays, 40),
    "faces": (faces, 60),
    "run files": (run_files, 40),
}
"""Who makes each subject, and how many corruptions the tests hold it to."""


def subjects_named(part: str, folder: Path) -> Iterator[Subject]:
    """Each subject whose name has this part, made when it is asked for."""
    for number, (name, (make, _)) in enumerate(MAKERS.items()):
        if part in name:
            yield make(folder / str(number))
