"""500 random corruptions of small real files: no traceback, none in silence, and no other file lost.

`docs/security.md` says what "in silence" means. seeds.txt holds what was found before.
"""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corruptions import KINDS, Subject, corrupted, trial
from subjects import MAKERS, said

SEEDS = [line.split("\t")[:2] for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines()[1:]]


@pytest.fixture(autouse=True)
def caches_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", MAKERS)
def test_no_corruption_crashes_passes_in_silence_or_takes_another_file_with_it(tmp_path: Path, name: str) -> None:
    make, count = MAKERS[name]
    subject = make(tmp_path / "files")
    kept = [int(number) for of, number in SEEDS if of == name]
    outcomes = Counter(trial(subject, number)[0] for number in [*kept, *range(count)])
    assert sum(outcomes.values()) == count + len(kept)


def test_there_are_five_hundred_of_them_of_every_kind() -> None:
    assert sum(count for _, count in MAKERS.values()) >= 500
    dice, data = np.random.default_rng(0), bytes(range(256)) * 4
    found = Counter(corrupted(data, dice, b"other")[0] for _ in range(500))
    assert found.keys() == KINDS.keys() and min(found.values()) > 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 63, 1000])
def test_damage_is_the_same_every_time_and_of_files_of_any_length(kind: str, length: int) -> None:
    data = random.Random(0).randbytes(length)
    one, other = (KINDS[kind](data, np.random.default_rng(3), b"else") for _ in range(2))
    assert one == other
    if kind == "swapped":
        assert sorted(one) == sorted(data)


def test_the_harness_sees_a_crash_a_silent_load_and_a_lost_file(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"content of {name}")

    def crashes(path: Path, before: bytes) -> str:
        raise KeyError(path.name)

    def is_silent(path: Path, before: bytes) -> str:
        assert path.read_bytes() == before
        return "same"

    def loses(path: Path, before: bytes) -> str:
        (tmp_path / "b.txt").unlink()
        return "refused"

    for look, says in ((crashes, "KeyError"), (is_silent, "assert"), (loses, "that was not damaged has changed")):
        with pytest.raises(AssertionError, match=says):
            trial(Subject("made up", tmp_path, [tmp_path / "a.txt"], look), 0)
        assert (tmp_path / "a.txt").read_text() == "content of a.txt"
        assert (tmp_path / "b.txt").read_text() == "content of b.txt"


def test_an_exception_that_escapes_a_command_is_not_taken_for_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: list[str]) -> None:
        raise IndexError("escaped")

    monkeypatch.setattr("dino_ssl.commands.stats.run", broken)
    with pytest.raises(IndexError, match="escaped"):
        said("stats", "x")
