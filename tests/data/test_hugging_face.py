"""Data sets of Hugging Face's `datasets`: encoded images, splits and classes; nothing is fetched."""

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from opening import ROOT, folder_of, labels_of, problem
from PIL import Image

from dino_ssl.data import sources
from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.sources import Source, load, open_source

needs_datasets = pytest.mark.skipif(find_spec("datasets") is None, reason="the extra datasets is not installed")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("datasets"):
        import datasets  # noqa: PLC0415

        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def jpeg(red: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (red * 20, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


def table(reds: list[int], **columns: list[object]):
    import datasets  # noqa: PLC0415

    features = {"image": datasets.Image()}
    features |= {name: datasets.ClassLabel(names=["zebra", "ape"]) for name in columns if name.endswith("label")}
    images = [{"bytes": jpeg(red), "path": None} for red in reds]
    made = datasets.Dataset.from_dict({"image": images, **columns})
    return made.cast(datasets.Features({**made.features, **features}))


def save(folder: Path, found) -> str:
    found.save_to_disk(folder)
    return f"hf:{folder}"


def opened(spec: str) -> Source:
    source = open_source(spec, ROOT)
    assert isinstance(source, Source)
    return source


@pytest.mark.skipif(find_spec("datasets") is not None, reason="the extra datasets is installed")
def test_without_datasets_it_says_what_to_install() -> None:
    assert problem("hf:beans").endswith("needs datasets: pip install 'dino-ssl[datasets]'")


@pytest.mark.parametrize("spec", ["hf:", "hf: "])
def test_no_name_says_what_to_write(spec: str) -> None:
    assert "write hf:FOLDER or hf:NAME" in problem(spec)


@needs_datasets
def test_a_saved_folder_gives_the_encoded_images(tmp_path: Path) -> None:
    source = opened(save(tmp_path / "set", table([3, 1, 2], label=[0, 1, 1])))
    assert [source.raw(index) for index in range(3)] == [jpeg(red) for red in (3, 1, 2)]
    assert load(source, 0).pixels.shape == (8, 8, 3)
    assert (source.classes, labels_of(source)) == (("ape", "zebra"), [1, 0, 0])
    assert source.describe(2) == f"hf:{tmp_path / 'set'}[2]"
    assert source.shard_sizes is None


@needs_datasets
def test_rows_that_were_chosen_and_shuffled_stay_so(tmp_path: Path) -> None:
    source = opened(save(tmp_path / "set", table(list(range(6))).select([4, 2, 5])))
    assert [source.raw(index) for index in range(3)] == [jpeg(red) for red in (4, 2, 5)]
    assert source.labels is None


@needs_datasets
def test_splits_are_found_by_name(tmp_path: Path) -> None:
    import datasets  # noqa: PLC0415

    splits = {"train": table([1]), "validation": table([2, 3]), "extra": table([4, 5, 6])}
    spec = save(tmp_path / "a:b", datasets.DatasetDict(splits))
    lengths = [len(opened(f"{spec}{split}")) for split in ("", ":train", ":validation", ":extra")]
    assert lengths == [1, 1, 2, 3]
    assert sources.test_source_of(spec) == sources.test_source_of(f"{spec}:train") == f"{spec}:validation"
    assert sources.test_source_of(f"{spec}:validation") is None
    assert problem(f"{spec}:test").endswith("there is no split 'test'; choose from train, validation, extra")


@needs_datasets
def test_the_only_split_is_meant_whatever_it_is_called(tmp_path: Path) -> None:
    import datasets  # noqa: PLC0415

    spec = save(tmp_path / "set", datasets.DatasetDict({"unsupervised": table([1, 2])}))
    assert len(opened(spec)) == 2
    assert sources.test_source_of(spec) is None


@needs_datasets
def test_a_folder_of_parquet_files_is_read(tmp_path: Path) -> None:
    for number, split in enumerate(["train", "test"]):
        (tmp_path / "set").mkdir(exist_ok=True)
        table([number, 5], label=[0, 1]).to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    source = opened(f"hf:{tmp_path / 'set'}")
    assert [source.raw(index) for index in range(2)] == [jpeg(0), jpeg(5)]
    assert opened(f"hf:{tmp_path / 'set'}:test").raw(0) == jpeg(1)


@needs_datasets
def test_a_folder_of_images_is_read(tmp_path: Path) -> None:
    folder_of(tmp_path / "set", "a/0.png", "b/1.png", "b/2.png")
    source = opened(f"hf:{tmp_path / 'set'}")
    assert sorted(int(load(source, index).pixels[0, 0, 0]) for index in range(3)) == [0, 1, 2]
    assert source.classes == ("a", "b")
    (tmp_path / "set/b/2.png").unlink()
    broken = []
    for index in range(3):
        try:
            source.raw(index)
        except BrokenImage as error:
            broken.append(error.reason)
    assert broken == ["the file does not exist (any more)"]


@needs_datasets
@pytest.mark.parametrize(("names", "expected"), [(("label",), True), (("fine_label", "coarse_label"), False)])
def test_of_several_columns_of_classes_none_is_meant(tmp_path: Path, names: tuple[str, ...], expected: bool) -> None:
    source = opened(save(tmp_path / "set", table([1, 2], **{name: [0, 1] for name in names})))
    assert (source.labels is not None) == expected


@needs_datasets
def test_images_without_classes_are_minus_one(tmp_path: Path) -> None:
    assert opened(save(tmp_path / "none", table([1, 2], label=[-1, -1]))).labels is None
    some = save(tmp_path / "some", table([1, 2], label=[0, -1]))
    assert "row 1: no class, where other images have one" in problem(some)


@needs_datasets
def test_what_holds_no_images_or_does_not_exist_is_refused(tmp_path: Path) -> None:
    import datasets  # noqa: PLC0415

    texts = datasets.Dataset.from_dict({"text": ["a", "b"]})
    assert "has 2 rows of text: Value; it must have one column of Image" in problem(save(tmp_path / "set", texts))
    assert "cannot be loaded" in problem(f"hf:{tmp_path / 'gone'}")
    (tmp_path / "set" / "dataset_info.json").write_text("{")
    assert "cannot be loaded" in problem(f"hf:{tmp_path / 'set'}")


@needs_datasets
def test_threads_and_sent_processes_read_alike(tmp_path: Path) -> None:
    source = opened(save(tmp_path / "set", table([red % 12 for red in range(60)])))
    order = np.random.default_rng(0).permutation(60).tolist() * 5
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.raw, order)) == [jpeg(index % 12) for index in order]
    assert pickle.loads(pickle.dumps(source)).raw(7) == jpeg(7)


@needs_datasets
def test_the_fingerprint_follows_the_images_and_not_the_place(tmp_path: Path) -> None:
    one, same, other = (
        opened(save(tmp_path / name, table(reds))).fingerprint()
        for name, reds in (("one", [1, 2]), ("same", [1, 2]), ("other", [1, 3]))
    )
    assert one == same != other
