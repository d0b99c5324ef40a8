"""Known data sets equal their oracles; a damaged or malicious file is named and runs nothing."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from opening import Malicious, labels_of, pixels_of, problem, write_arrays
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10

from dino_ssl.data import sources

RNG = np.random.default_rng(0)


def test_digits_are_those_of_scikit_learn_in_their_order() -> None:
    digits = load_digits()
    train, test = pixels_of("digits:train"), pixels_of("digits:test")
    assert (len(train), len(test)) == (1437, 360)
    images = np.concatenate([train.images, test.images])
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[..., 0], np.rint(digits.images * 255 / 16))
    assert labels_of(train) + labels_of(test) == digits.target.tolist()
    assert train.classes == tuple("0123456789")


def test_the_bare_name_never_contains_test_images() -> None:
    assert pixels_of("digits").fingerprint() == pixels_of("digits:train").fingerprint()
    assert pixels_of("digits").fingerprint() != pixels_of("digits:test").fingerprint()


def test_pixels_describe_and_show_their_images() -> None:
    source = pixels_of("digits")
    assert source.name == "digits:train"
    assert source.describe(12) == "digits:train[12]"
    np.testing.assert_array_equal(source.raw(12), source.images[12])
    np.testing.assert_array_equal(sources.load(source, 12).pixels, np.repeat(source.images[12], 3, axis=-1))


PLANES = RNG.integers(0, 256, (6, 4, 3, 32, 32), np.uint8)
"""Five training batches and a test batch of 4 images."""
LABELS = RNG.integers(0, 10, (6, 4))
CLASSES = [f"class {number}" for number in range(10)]


def write_cifar10(folder: Path, protocol: int = 2, *, bytes_keys: bool = False) -> Path:
    def dump(name: str, content: dict[str, object]) -> None:
        keyed = {(key.encode() if bytes_keys else key): value for key, value in content.items()}
        (folder / name).write_bytes(pickle.dumps(keyed, protocol))

    folder.mkdir(parents=True)
    for batch, name in enumerate([*(f"data_batch_{part}" for part in range(1, 6)), "test_batch"]):
        dump(name, {"data": PLANES[batch].reshape(4, 3072), "labels": LABELS[batch].tolist()})
    dump("batches.meta", {"label_names": [c.encode() if bytes_keys else c for c in CLASSES]})
    return folder


class UncheckedCIFAR10(CIFAR10):
    """torchvision's reader, the oracle, without its check of file sums."""

    train_list = [[name, None] for name, _ in CIFAR10.train_list]  # noqa: RUF012
    test_list = [[name, None] for name, _ in CIFAR10.test_list]  # noqa: RUF012
    meta = dict(CIFAR10.meta, md5=None)  # noqa: RUF012


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_batches_equal_torchvision(tmp_path: Path, split: str) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py")
    oracle = UncheckedCIFAR10(tmp_path, train=split == "train")
    source = pixels_of(f"cifar10:{split}", tmp_path)
    np.testing.assert_array_equal(source.images, oracle.data)
    assert labels_of(source) == oracle.targets
    assert list(source.classes) == oracle.classes
    assert source.name == f"cifar10:{split}"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("bytes_keys", [False, True])
def test_cifar10_repacked_with_any_protocol_is_read(tmp_path: Path, protocol: int, bytes_keys: bool) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py", protocol, bytes_keys=bytes_keys)
    source = pixels_of("cifar10", tmp_path)
    np.testing.assert_array_equal(source.images, PLANES[:5].reshape(20, 3, 32, 32).transpose(0, 2, 3, 1))
    assert labels_of(source) == LABELS[:5].ravel().tolist()
    assert list(source.classes) == CLASSES


def test_a_batch_of_the_original_python_2_file_is_read(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    image = PLANES[5, :1].tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x01M\x00\x0ct"
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<I", len(image)) + image + b"tb"
    )
    (folder / "test_batch").write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x07eu.")
    source = pixels_of("cifar10:test", tmp_path)
    np.testing.assert_array_equal(source.images[0], PLANES[5, 0].transpose(1, 2, 0))
    assert labels_of(source) == [7]


def test_labels_repacked_as_numpy_numbers_are_read(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    (folder / "test_batch").write_bytes(pickle.dumps({"data": PLANES[5].reshape(4, 3072), "labels": list(LABELS[5])}))
    assert labels_of(pixels_of("cifar10:test", tmp_path)) == LABELS[5].tolist()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_batch_is_named_and_nothing_of_it_runs(tmp_path: Path, protocol: int) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    payload = pickle.dumps({"data": Malicious(tmp_path / "victim"), "labels": [0]}, protocol)
    (folder / "data_batch_3").write_bytes(payload)
    message = problem("cifar10", tmp_path)
    assert "data_batch_3 wants to call posix.system" in message
    assert not (tmp_path / "victim").exists()
    pickle.loads(payload)  # the payload is live: what refused it was not a mistake of this test
    pickle.loads(pickle.dumps(Malicious(tmp_path / "victim")))
    assert (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    "name",
    ["builtins eval", "builtins getattr", "numpy load", "numpy.core.multiarray fromfile", "os.path join"],
)
def test_only_constructors_of_arrays_may_be_called(tmp_path: Path, name: str) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    module, function = name.split()
    (folder / "test_batch").write_bytes(f"c{module}\n{function}\n(tR.".encode())
    assert f"wants to call {module}.{function}" in problem("cifar10:test", tmp_path)


def test_a_codec_of_the_pickles_choice_is_not_looked_up(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    (folder / "test_batch").write_bytes(b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.")
    assert "_codecs.encode with 'rot13'" in problem("cifar10:test", tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"labels": [1]}, "has no data"),
        ({"data": np.zeros((2, 3072), np.uint8)}, "has no labels"),
        (
            {"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]},
            r"data is [2, 3071]; it must be [N, 3072]",
        ),
        ({"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]}, "float32"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "labels are int64 [1]"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 10]}, "labels 1 to 10, but 10 classes"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1, [2]]}, "labels are not one integer"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "N > 0"),
        ([1, 2], "holds a list"),
    ],
)
def test_a_batch_of_another_shape_is_refused(tmp_path: Path, content: object, expected: str) -> None:
    folder = write_cifar10(tmp_path / "cifar-10-batches-py")
    (folder / "test_batch").write_bytes(pickle.dumps(content))
    message = problem("cifar10:test", tmp_path)
    assert expected in message
    assert "test_batch" in message or "cifar-10-batches-py" in message


@pytest.mark.parametrize("keep", [0, 1, 100, 5000])
def test_a_truncated_batch_is_named(tmp_path: Path, keep: int) -> None:
    file = write_cifar10(tmp_path / "cifar-10-batches-py") / "data_batch_2"
    file.write_bytes(file.read_bytes()[:keep])
    assert f"{file} is damaged" in problem("cifar10", tmp_path)


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    (write_cifar10(tmp_path / "cifar-10-batches-py") / "data_batch_4").unlink()
    assert problem("cifar10", tmp_path).endswith("data_batch_4 does not exist")


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_a_path_to_the_batches_or_their_parent_works_like_the_name(tmp_path: Path, below: str) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py")
    path = tmp_path / below
    for split in ("train", "test"):
        source = pixels_of(f"{path}:{split}")
        assert source.fingerprint() == pixels_of(f"cifar10:{split}", tmp_path).fingerprint()
    assert sources.test_source_of(str(path)) == f"{path}:test"


def write_cifar100(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for batch, name in enumerate(["train", "test"]):
        fine = (LABELS[batch] * 11).tolist()
        content = {"data": PLANES[batch].reshape(4, 3072), "fine_labels": fine, "coarse_labels": [0] * 4}
        (folder / name).write_bytes(pickle.dumps(content))
    meta = {"fine_label_names": [str(number) for number in range(100)], "coarse_label_names": ["x"]}
    (folder / "meta").write_bytes(pickle.dumps(meta))
    return folder


@pytest.mark.parametrize(("split", "batch"), [("train", 0), ("test", 1)])
def test_cifar100_has_its_fine_labels(tmp_path: Path, split: str, batch: int) -> None:
    write_cifar100(tmp_path / "cifar-100-python")
    source = pixels_of(f"cifar100:{split}", tmp_path)
    np.testing.assert_array_equal(source.images, PLANES[batch].transpose(0, 2, 3, 1))
    assert labels_of(source) == (LABELS[batch] * 11).tolist()
    assert len(source.classes) == 100


def test_a_folder_with_both_cifars_is_ambiguous(tmp_path: Path) -> None:
    ten, hundred = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-100-python"
    write_cifar10(ten)
    write_cifar100(hundred)
    assert problem(tmp_path).endswith(f"holds several data sets; write '{ten}' or '{hundred}'")


def test_a_data_set_that_is_not_there_says_where_it_was_looked_for_and_how_to_get_it(tmp_path: Path) -> None:
    message = problem("cifar10", tmp_path)
    assert str(tmp_path / "cifar-10-batches-py" / "data_batch_1") in message
    assert str(tmp_path / "cifar10-npy" / "x_train.npy") in message
    assert f"torchvision.datasets.CIFAR10('{tmp_path}', download=True)" in message
    assert "data_root" in message
    assert not list(tmp_path.iterdir())


def test_cifar10_as_arrays_equals_the_batches(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "batches" / "cifar-10-batches-py")
    arrays = tmp_path / "arrays" / "cifar10-npy"
    for split in ("train", "test"):
        batches = pixels_of(f"cifar10:{split}", tmp_path / "batches")
        write_arrays(arrays, batches.images, labels_of(batches), split)
    (arrays / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for split in ("train", "test"):
        batches, source = (pixels_of(f"cifar10:{split}", tmp_path / place) for place in ("batches", "arrays"))
        np.testing.assert_array_equal(source.images, batches.images)
        assert labels_of(source) == labels_of(batches)
        assert source.classes == batches.classes
        assert source.fingerprint() == batches.fingerprint()


def write_idx(file: Path, values: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    file.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    raw = tmp_path / "FashionMNIST" / "raw"
    for part, count in (("train", 6), ("t10k", 2)):
        write_idx(raw / f"{part}-images-idx3-ubyte", np.arange(count * 28 * 28).reshape(count, 28, 28) % 251)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count))
    return raw


@pytest.mark.parametrize(("split", "count"), [("train", 6), ("test", 2)])
def test_fashion_mnist_is_read_from_its_idx_files(fashion: Path, split: str, count: int) -> None:
    source = pixels_of(f"fashion_mnist:{split}", fashion.parent.parent)
    grey = (np.arange(count * 28 * 28) % 251).reshape(count, 28, 28)
    np.testing.assert_array_equal(source.images, grey[..., None])
    assert labels_of(source) == list(range(count))
    assert [source.classes[label] for label in (0, 9)] == ["T-shirt/top", "Ankle boot"]


@pytest.mark.parametrize("keep", [0, 10, 100])
def test_a_damaged_idx_file_is_named(fashion: Path, keep: int) -> None:
    file = fashion / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:keep])
    assert str(file) in problem("fashion_mnist:test", fashion.parent.parent)


def test_a_missing_idx_file_is_named(fashion: Path) -> None:
    (fashion / "t10k-labels-idx1-ubyte").unlink()
    assert "t10k-labels-idx1-ubyte cannot be opened" in problem("fashion_mnist:test", fashion.parent.parent)
