"""Shards that lie elsewhere: fetched once into a bounded folder, and a reason where that fails."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import fsspec
import pytest
from fsspec import AbstractFileSystem
from tars import contents, opened, picture, pictures, write_tar

from dino_ssl.data.decoding import BrokenImage
from dino_ssl.data.tar import remote
from dino_ssl.data.tar import shards as shards_module
from dino_ssl.data.tar.shards import is_shards
from dino_ssl.errors import UsageError

MEMORY = fsspec.filesystem("memory")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache and the server, both empty before each test; and no waiting for a better network."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(remote, "PAUSES", ())
    MEMORY.store.clear()
    yield folder / "dino_ssl" / "remote"
    MEMORY.store.clear()


def serve(tmp_path: Path, *, shards: int, samples: int = 3) -> None:
    """memory://set/0.tar, ... with numbered samples."""
    for shard in range(shards):
        path = write_tar(tmp_path / f"{shard}.tar", pictures(range(samples * shard, samples * (shard + 1)), label=True))
        MEMORY.pipe(f"/set/{shard}.tar", path.read_bytes())


def fetched(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if not path.name.startswith("lock-")]


def test_remote_shards_are_read_as_local_ones(tmp_path: Path, cache: Path) -> None:
    serve(tmp_path, shards=3)
    expected = [picture(n) for n in range(9)]
    for spec in ("memory://set/{0..2}.tar", "memory://set/*.tar", "memory://set", "memory://set/"):
        assert is_shards(spec)
        source = opened(spec)
        assert contents(source) == expected
        assert source.describe(4) == "1.tar: 000004.png"
        assert source.fingerprint() == opened(tmp_path).fingerprint()
    assert len(fetched(cache)) == 3


def test_missing_remote_shards_are_named(tmp_path: Path) -> None:
    serve(tmp_path, shards=2)
    with pytest.raises(
        UsageError, match=r"2 of 4 shards do not exist as files: memory://set/2\.tar, memory://set/3\.tar"
    ):
        opened("memory://set/{0..3}.tar")
    with pytest.raises(UsageError, match=r"no \.tar fits 'memory://elsewhere/'"):
        opened("memory://elsewhere/")


def test_an_unknown_protocol_and_a_missing_package_are_said() -> None:
    with pytest.raises(UsageError, match=r"cannot be reached: .*Protocol not known: nonsense"):
        opened("nonsense://x/1.tar")
    if shutil.which("hdfs") is None:
        with pytest.raises(UsageError, match="cannot be reached: "):
            opened("hdfs://x/1.tar")


class AsTheWeb(AbstractFileSystem):
    """Fails as fsspec's file system for the web does."""

    protocol = "astheweb"

    def info(self, path: str, **options: object) -> dict[str, object]:
        causes = {"0.tar": FileNotFoundError(path), "1.tar": OSError("404, message='Not Found'")}
        raise FileNotFoundError(path) from causes.get(path, ConnectionRefusedError("nobody listens"))


def test_a_server_that_does_not_answer_is_told_from_one_without_the_shard() -> None:
    fsspec.register_implementation("astheweb", AsTheWeb, clobber=True)
    with pytest.raises(UsageError, match="2 of 2 shards do not exist as files"):
        opened("astheweb://{0,1}.tar")
    with pytest.raises(UsageError, match="cannot be reached: ConnectionRefusedError: nobody listens"):
        opened("astheweb://{0,1,2}.tar")


def test_a_shard_is_fetched_once_by_all_threads_and_processes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(tmp_path, shards=1, samples=20)
    source = opened("memory://set/0.tar")
    (copy,) = fetched(cache)
    copy.unlink()
    fetches = get_context("fork").Value("i", 0)
    get_file = type(MEMORY).get_file

    def counted(*arguments: object, **options: object) -> None:
        with fetches.get_lock():
            fetches.value += 1
        get_file(*arguments, **options)

    monkeypatch.setattr(type(MEMORY), "get_file", counted)
    children = [get_context("fork").Process(target=contents, args=(source,)) for _ in range(2)]
    for child in children:
        child.start()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.raw, range(20))) == [picture(n) for n in range(20)]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert fetches.value == 1


def test_the_shards_used_least_recently_go_when_the_limit_is_reached(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(tmp_path, shards=5)
    size = (tmp_path / "0.tar").stat().st_size
    monkeypatch.setenv("DINO_SSL_REMOTE_CACHE_GB", str(2.5 * size / 1e9))
    monkeypatch.setattr(shards_module, "MAX_OPEN", 1)
    source = opened("memory://set/*.tar")
    for index in (0, 3, 6, 9, 12, 0):
        assert source.raw(index) == picture(index)
        assert len(fetched(cache)) <= 2
    for age, path in enumerate(sorted(fetched(cache), key=lambda path: path.stat().st_mtime_ns, reverse=True)):
        os.utime(path, (10**9 - age, 10**9 - age))
    source.raw(3)
    oldest = min(fetched(cache), key=lambda path: path.stat().st_mtime_ns)
    source.raw(6)
    assert not oldest.exists()


def test_a_limit_below_one_shard_still_lets_it_be_read(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(tmp_path, shards=2)
    monkeypatch.setenv("DINO_SSL_REMOTE_CACHE_GB", "0")
    # One after the other: shards that are fetched side by side make room before either is there.
    for shard in range(2):
        expected = [picture(n) for n in range(3 * shard, 3 * shard + 3)]
        assert contents(opened(f"memory://set/{shard}.tar")) == expected
        assert len(fetched(cache)) == 1


def test_a_remote_shard_that_vanishes_or_changes_is_a_reason(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_module, "MAX_OPEN", 1)
    serve(tmp_path, shards=3)
    source = opened("memory://set/*.tar")
    for path in fetched(cache):
        path.unlink()
    MEMORY.rm("/set/0.tar")
    MEMORY.pipe("/set/1.tar", b"shorter")
    for index, reason in (
        (0, "FileNotFoundError"),
        (1, "FileNotFoundError"),
        (3, "10,240 bytes were announced, 7 came"),
    ):
        with pytest.raises(BrokenImage, match=reason):
            source.raw(index)
    assert source.raw(6) == picture(6)
    assert not [path for path in fetched(cache) if path.suffix == ".tmp"]


def test_a_shard_that_changed_is_fetched_again(tmp_path: Path) -> None:
    serve(tmp_path, shards=1)
    assert contents(opened("memory://set/0.tar"))[0] == picture(0)
    MEMORY.pipe("/set/0.tar", write_tar(tmp_path / "x.tar", pictures([8, 9, 10], label=True)).read_bytes())
    assert contents(opened("memory://set/0.tar"))[0] == picture(8)
