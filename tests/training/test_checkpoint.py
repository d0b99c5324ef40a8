"""Checkpoints: whole or absent at any kill, exact, retained by count, and never silently lost."""

import hashlib
import logging
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dino_ssl.checksums import verify
from dino_ssl.durable import link_or_copy, write_atomically
from dino_ssl.errors import RunError, UsageError
from dino_ssl.training.checkpoint import CheckpointStore, capture_rng, check_plain, restore_rng


def a_state(step: int) -> dict[str, Any]:
    return {
        "student": {"w": torch.full((50, 40), float(step))},
        "epoch": step,
        "lr": 0.1 * step,
        "none": None,
    }


def assert_same(state: dict[str, Any], expected: dict[str, Any]) -> None:
    assert state.keys() == expected.keys()
    assert torch.equal(state["student"]["w"], expected["student"]["w"])
    assert [state[k] for k in ("epoch", "lr", "none")] == [expected[k] for k in ("epoch", "lr", "none")]


def a_store(folder: Path, keep_last: int = 2, keep_every: int = 0) -> CheckpointStore:
    return CheckpointStore(folder, keep_last=keep_last, keep_every=keep_every)


def saved(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix("checkpoint_")) for path in folder.glob("checkpoint_*.pth"))


def name(step: int) -> str:
    return f"checkpoint_{step:09d}.pth"


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_saved_state_comes_back_exactly_and_an_empty_folder_gives_none(tmp_path: Path) -> None:
    assert a_store(tmp_path / "new").load_latest() is None
    path = a_store(tmp_path).save(a_state(7), 7)
    loaded = a_store(tmp_path).load_latest()
    assert loaded is not None and loaded[1] == path == tmp_path / name(7)
    assert_same(loaded[0], a_state(7))


def test_sha256sum_confirms_the_sidecar(tmp_path: Path) -> None:
    path = a_store(tmp_path).save(a_state(7), 7)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / f"{name(7)}.sha256").read_text() == f"{expected}  {name(7)}\n"
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--strict", "-c", f"{name(7)}.sha256"], cwd=tmp_path, check=True)


def test_checkpoint_pth_is_the_newest_and_public_tools_can_load_it(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for step in (1, 2, 2):  # the same step twice, as when a signal comes at the end of an epoch
        store.save(a_state(step), step)
        public = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
        assert public["epoch"] == step
    assert (tmp_path / "checkpoint.pth").samefile(tmp_path / name(2))
    assert not list(tmp_path.glob("*.tmp"))


def test_the_newest_n_and_every_mth_of_the_whole_run_stay_across_restarts(tmp_path: Path) -> None:
    for step in range(10, 140, 10):  # thirteen saves, each in a process of its own
        store = a_store(tmp_path, keep_last=2, keep_every=5)
        store.load_latest()
        store.save(a_state(step), step)
    assert saved(tmp_path) == [50, 100, 120, 130]
    assert {p.stem.removesuffix(".pth") for p in tmp_path.glob("*.sha256")} == {
        p.stem for p in tmp_path.glob("checkpoint_*.pth")
    }


def test_the_count_of_saves_falls_back_with_a_resume_from_an_earlier_checkpoint(tmp_path: Path) -> None:
    store = a_store(tmp_path, keep_last=3, keep_every=4)
    for step in (10, 20, 30):
        store.save(a_state(step), step)
    damage(tmp_path / name(30))
    resumed = a_store(tmp_path, keep_last=3, keep_every=4)
    resumed.load_latest()
    for step in (30, 40, 50, 60, 70, 80, 90):
        resumed.save(a_state(step), step)
    assert saved(tmp_path) == [40, 70, 80, 90]


def test_a_step_saved_twice_counts_once(tmp_path: Path) -> None:
    store = a_store(tmp_path, keep_last=1, keep_every=2)
    for step in (1, 2, 2, 3, 4, 5):
        store.save(a_state(step), step)
    assert saved(tmp_path) == [2, 4, 5]


def test_a_store_that_loaded_nothing_deletes_nothing_it_did_not_save(tmp_path: Path) -> None:
    first = a_store(tmp_path, keep_last=1)
    first.save(a_state(100), 100)
    other = a_store(tmp_path, keep_last=1)
    for step in (5, 6):
        other.save(a_state(step), step)
    assert saved(tmp_path) == [6, 100]


@pytest.mark.parametrize("sidecar", ["there", "missing", "empty"])
@pytest.mark.parametrize("harm", ["flipped bit", "truncated", "emptied"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sidecar: str, harm: str
) -> None:
    store = a_store(tmp_path)
    store.save(a_state(1), 1)
    newest = store.save(a_state(2), 2)
    if sidecar == "missing":
        (tmp_path / f"{newest.name}.sha256").unlink()
    elif sidecar == "empty":
        (tmp_path / f"{newest.name}.sha256").write_text("")
    if harm == "flipped bit":
        damage(newest)
    else:
        newest.write_bytes(newest.read_bytes()[: 500 if harm == "truncated" else 0])
    with caplog.at_level(logging.WARNING, logger="dino_ssl"):
        loaded = a_store(tmp_path).load_latest()
    assert loaded is not None and loaded[1] == tmp_path / name(1)
    assert_same(loaded[0], a_state(1))
    assert str(newest) in caplog.text and "damaged" in caplog.text
    with pytest.raises(RunError, match=newest.name):
        verify(newest)


def test_no_changed_byte_of_a_checkpoint_without_a_sidecar_changes_what_is_loaded(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    path = store.save({"a": torch.arange(20.0), "b": [1, 2.5, None, "x", (1, b"z")]}, 1)
    (tmp_path / f"{path.name}.sha256").unlink()
    (tmp_path / "checkpoint.pth").unlink()
    good = path.read_bytes()
    directory = good.index(b"PK\x01\x02")  # no checksum covers it: try every byte
    for position in (*range(0, directory, 7), *range(directory, len(good))):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0xFF]) + good[position + 1 :])
        try:
            state, _ = store.load_latest() or ({}, None)
        except RunError:
            continue
        assert torch.equal(state["a"], torch.arange(20.0)) and state["b"] == [1, 2.5, None, "x", (1, b"z")]


def test_only_damaged_checkpoints_are_an_error_that_lists_each_and_never_a_fresh_start(
    tmp_path: Path,
) -> None:
    store = a_store(tmp_path)
    for step in (1, 2):
        damage(store.save(a_state(step), step))
    (tmp_path / "checkpoint.pth").unlink()
    with pytest.raises(RunError, match=r"move that folder away.*another output_dir") as error:
        a_store(tmp_path).load_latest()
    assert all(name(step) in str(error.value) for step in (1, 2))


def test_a_lone_checkpoint_pth_is_resumed_from(tmp_path: Path) -> None:
    a_store(tmp_path).save(a_state(3), 3)
    (tmp_path / name(3)).unlink()
    loaded = a_store(tmp_path).load_latest()
    assert loaded is not None and loaded[1].name == "checkpoint.pth"
    assert_same(loaded[0], a_state(3))


def test_a_foreign_pickle_is_refused_without_running_it(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return ran.touch, ()

    torch.save({"args": Evil()}, tmp_path / "checkpoint.pth")
    with pytest.raises(RunError, match="no checkpoint of dino-ssl"):
        a_store(tmp_path).load_latest()
    torch.save([1], tmp_path / "checkpoint.pth")
    with pytest.raises(RunError, match="a list, not a dict"):
        a_store(tmp_path).load_latest()
    assert not ran.exists()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the kernel refuse files above `size` bytes: EFBIG, as a full disk gives ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# In the middle of a tensor, in the first header, and in the last record of the archive.
@pytest.mark.parametrize("room", [4096, 10, -100])
def test_a_refused_write_is_one_clear_error_and_the_older_checkpoint_stays_good(tmp_path: Path, room: int) -> None:
    store = a_store(tmp_path, keep_last=1)
    size = store.save(a_state(1), 1).stat().st_size
    with largest_file(room if room > 0 else size + room), pytest.raises(RunError) as error:
        store.save(a_state(2), 2)
    message = str(error.value)
    assert all(part in message for part in (name(2), "File too large", "8,000 bytes", "free", "untouched"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.pth", name(1), f"{name(1)}.sha256"]
    loaded = a_store(tmp_path).load_latest()
    assert loaded is not None
    assert_same(loaded[0], a_state(1))
    store.save(a_state(2), 2)
    assert saved(tmp_path) == [2]


def test_a_full_disk_is_survived(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if (
        os.geteuid() != 0
        or not shutil.which("mount")
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small disk")
    try:
        store = a_store(tmp_path, keep_last=1)
        store.save(a_state(1), 1)
        with pytest.raises(RunError, match=r"No space left on device.*800,000 bytes, \d+,\d+ are free"):
            store.save({"student": {"w": torch.zeros(200_000)}}, 2)
        loaded = a_store(tmp_path).load_latest()
        assert loaded is not None
        assert_same(loaded[0], a_state(1))
        assert not list(tmp_path.glob("*.tmp"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_the_remains_of_killed_saves_are_deleted_and_other_files_are_not(tmp_path: Path) -> None:
    for remains in (f"{name(5)}.tmp", f"{name(5)}.sha256.tmp", "checkpoint.pth.tmp", "notes.tmp"):
        (tmp_path / remains).write_bytes(b"x")
    a_store(tmp_path).save(a_state(9), 9)
    assert [p.name for p in tmp_path.glob("*.tmp")] == ["notes.tmp"]


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match=r"cannot save .*checkpoints/checkpoint_000000001\.pth: File exists"):
        a_store(tmp_path / "checkpoints").save(a_state(1), 1)


def test_a_disk_without_hard_links_gets_a_copy(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two disks, between which there are no hard links")
    source = memory / f"dino_ssl_test_{os.getpid()}"
    source.write_bytes(b"weights")
    try:
        link_or_copy(source, tmp_path / "checkpoint.pth")
    finally:
        source.unlink()
    assert (tmp_path / "checkpoint.pth").read_bytes() == b"weights"
    assert len(list(tmp_path.iterdir())) == 1


def save_until_killed(folder: Path, states: list[dict[str, Any]], same_step: bool, done: Connection) -> None:
    store = a_store(folder)
    loaded = store.load_latest()
    first = 0 if loaded is None else loaded[0]["epoch"]
    for state in states[first:]:
        store.save(state, 1 if same_step else state["epoch"])
        done.send(state["epoch"])


@pytest.mark.parametrize("same_step", [False, True])
def test_twenty_kills_at_random_moments_lose_no_finished_save_and_damage_no_file(
    tmp_path: Path, same_step: bool
) -> None:
    # Made before the fork: a forked child must not start torch's thread pool.
    states = [a_state(step) for step in range(1, 5000)]
    dice = random.Random(0)
    fork = multiprocessing.get_context("fork")
    for _ in range(20):
        receive, send = fork.Pipe(duplex=False)
        child = fork.Process(target=save_until_killed, args=(tmp_path, states, same_step, send))
        child.start()
        send.close()
        finished = receive.recv()  # at least one save, then any moment of the next ones
        child.join(timeout=dice.uniform(0, 0.03))
        child.kill()
        child.join()
        try:
            while True:
                finished = receive.recv()
        except EOFError:
            receive.close()
        loaded = a_store(tmp_path).load_latest()
        assert loaded is not None and loaded[0]["epoch"] in {finished, finished + 1}
        assert_same(loaded[0], a_state(loaded[0]["epoch"]))
        assert len(saved(tmp_path)) <= 3
        for path in tmp_path.glob("checkpoint_*.pth"):
            verify(path)


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ({"a": {"b": [1, np.float64(2.0)]}}, r"state\['a'\]\['b'\]\[1\] is a float64"),
        ({"a": (torch.zeros(1), Path("x"))}, r"state\['a'\]\[1\] is a PosixPath"),
        ({"a": {np.int64(3): 1}}, r"key .*3.* of state\['a'\] is a int64"),
        ({"a": {1, 2}}, r"state\['a'\] is a set"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused_before_it_is_saved(
    tmp_path: Path, state: dict[str, Any], where: str
) -> None:
    with pytest.raises(TypeError, match=where):
        a_store(tmp_path).save(state, 1)
    assert not list(tmp_path.iterdir())


def test_states_of_modules_and_optimizers_are_plain_and_come_back(tmp_path: Path) -> None:
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "names": OrderedDict(a=b"x")}
    check_plain(state)
    a_store(tmp_path).save(state, 1)
    loaded = a_store(tmp_path).load_latest()
    assert loaded is not None
    torch.testing.assert_close(loaded[0], state, rtol=0, atol=0)


def test_keep_last_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"checkpoint\.keep_last=0"):
        a_store(tmp_path, keep_last=0)


def draw() -> list[Any]:
    """Odd numbers of normals leave a spare one inside python's and numpy's generators."""
    return [
        [random.random(), random.gauss(0, 1)],
        np.random.rand(2).tolist() + np.random.randn(1).tolist(),
        torch.rand(3).tolist() + torch.randperm(5).tolist(),
    ]


def test_every_generator_continues_where_it_was_captured_also_through_a_file(tmp_path: Path) -> None:
    draw()
    a_store(tmp_path).save({"rng": capture_rng()}, 1)
    expected = draw()
    draw()
    loaded = a_store(tmp_path).load_latest()
    assert loaded is not None
    restore_rng(loaded[0]["rng"])
    assert draw() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_gpu_generator_continues_also_when_the_state_was_loaded_onto_the_gpu(tmp_path: Path) -> None:
    torch.rand(3, device="cuda")
    a_store(tmp_path).save({"rng": capture_rng()}, 1)
    expected = torch.rand(3, device="cuda")
    loaded = a_store(tmp_path).load_latest("cuda")
    assert loaded is not None
    restore_rng(loaded[0]["rng"])
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_linking_what_is_linked_already_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    for _ in range(2):
        link_or_copy(tmp_path / "a", tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_write_atomically_leaves_the_old_file_whole_when_the_disk_refuses(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_atomically(path, b"old")
    with largest_file(2), pytest.raises(OSError, match="File too large"):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
