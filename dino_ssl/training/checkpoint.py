"""A run's state on the disk: complete or absent, checksummed, and verified before it is used."""

import hashlib
import io
import logging
import os
import pickle
import random
import re
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dino_ssl.checksums import sidecar, verify
from dino_ssl.durable import link_or_copy, sync_folder, write_atomically
from dino_ssl.errors import RunError, UsageError

NEWEST = "checkpoint.pth"
"""The original's name for the newest checkpoint."""
_SAVED, _SOUND = "saved_steps", "sound_step"
_log = logging.getLogger("dino_ssl")


class CheckpointStore:
    """The checkpoints of one run. One process saves at a time; any number may load.

    A save needs room for one checkpoint more than those that stay. "Every Mth" counts the saves of the whole
    run: each file lists (under `saved_steps`) the steps saved up to it, so the count survives restarts, and
    falls back with a resume from an earlier checkpoint. Only steps on that list are ever deleted.

    Args:
        folder: RUN/checkpoints; the first save makes it.
        keep_last: newest checkpoints that stay, at least 1.
        keep_every: every Mth checkpoint stays for good; 0 keeps none but the newest.
    """

    def __init__(self, folder: Path, *, keep_last: int, keep_every: int) -> None:
        if keep_last < 1 or keep_every < 0:
            raise UsageError(
                f"checkpoint.keep_last={keep_last}, checkpoint.keep_every={keep_every}: "
                "keep_last is at least 1, keep_every at least 0"
            )
        self.folder = folder
        self.keep_last = keep_last
        self.keep_every = keep_every
        self._saved: list[int] = []
        self.sound_step: int | None = None
        """Newest step that was saved as sound; its checkpoint stays, too."""

    def save(self, state: dict[str, Any], step: int, *, is_sound: bool = True) -> Path:
        """Write `state` as the checkpoint of `step`, point `checkpoint.pth` at it, delete what need not stay.

        Args:
            is_sound: one to go back to should the run fail later.
        Raises:
            RunError: the disk is full or refuses; every older checkpoint is as it was.
            TypeError: `state` holds something that `weights_only=True` would not load.
        """
        check_plain(state)
        path = self._path(step)
        saved = [earlier for earlier in self._saved if earlier < step] + [step]
        sound = step if is_sound else self.sound_step
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # First, since the remains of a killed save may be what fills the disk.
            self._delete_temporaries()
            _publish({**state, _SAVED: saved, _SOUND: sound}, path)
            link_or_copy(path, self.folder / NEWEST)
        except OSError as error:
            raise self._refusal(path, state, error) from error
        self._saved, self.sound_step = saved, sound
        self._delete_surplus()
        return path

    def load_latest(self, map_location: str | torch.device = "cpu") -> tuple[dict[str, Any], Path] | None:
        """The newest good checkpoint and its file, or None where none was ever saved.

        A damaged one is named in a warning and skipped.

        Raises:
            RunError: there are checkpoints, and none is good.
        """
        reasons = []
        for path in self._newest_first():
            try:
                state = _read(path, map_location)
            except RunError as error:
                _log.warning("skipped a checkpoint: %s", error)
                reasons.append(str(error))
                continue
            return self._taken(state), path
        if reasons:
            raise RunError(
                f"no checkpoint in {self.folder} can be used:\n  " + "\n  ".join(reasons) + "\n"
                "move that folder away to start from zero, or choose another output_dir"
            )
        return None

    def load(self, step: int, map_location: str | torch.device = "cpu") -> tuple[dict[str, Any], Path]:
        """The checkpoint of `step` and its file.

        Raises:
            RunError: it is damaged, or not there.
        """
        path = self._path(step)
        return self._taken(_read(path, map_location)), path

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints of later steps: a run that went back to `step` takes others."""
        for later, path in self._numbered().items():
            if later > step:
                sidecar(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    def _taken(self, state: dict[str, Any]) -> dict[str, Any]:
        self._saved, self.sound_step = state.pop(_SAVED, []), state.pop(_SOUND, None)
        return state

    def _path(self, step: int) -> Path:
        return self.folder / f"checkpoint_{step:09d}.pth"

    def _numbered(self) -> dict[int, Path]:
        matches = ((re.fullmatch(r"checkpoint_(\d+)\.pth", p.name), p) for p in self.folder.glob("*.pth"))
        return {int(match[1]): path for match, path in matches if match}

    def _newest_first(self) -> list[Path]:
        paths = [path for _, path in sorted(self._numbered().items(), reverse=True)]
        newest = self.folder / NEWEST
        # Last, for a folder in which somebody kept nothing else.
        if newest.exists() and not any(newest.samefile(path) for path in paths):
            paths.append(newest)
        return paths

    def _delete_temporaries(self) -> None:
        for path in self.folder.glob("checkpoint*.tmp"):
            path.unlink(missing_ok=True)

    def _delete_surplus(self) -> None:
        stay = {*self._saved[-self.keep_last :], self.sound_step}
        if self.keep_every:
            stay.update(self._saved[self.keep_every - 1 :: self.keep_every])
        there = self._numbered()
        for step in (there.keys() & set(self._saved)) - stay:
            try:
                sidecar(there[step]).unlink(missing_ok=True)
                there[step].unlink(missing_ok=True)
            except OSError as error:
                _log.warning("cannot delete the old checkpoint %s: %s", there[step], error.strerror)

    def _refusal(self, path: Path, state: dict[str, Any], error: OSError) -> RunError:
        needed = sum(leaf.nbytes for _, leaf in _leaves(state, "state") if isinstance(leaf, Tensor))
        room = f"it needs about {needed:,} bytes"
        try:
            self._delete_temporaries()
            room += f", {shutil.disk_usage(self.folder).free:,} are free"
        except OSError:  # the folder itself is what fails
            pass
        return RunError(
            f"cannot save {path}: {error.strerror or error}; {room}. Older checkpoints in {self.folder} are "
            "untouched: make room there (checkpoint.keep_last, checkpoint.keep_every) or mend the disk, "
            "then run the same command again to resume"
        )


def _publish(state: dict[str, Any], path: Path) -> None:
    """Write `path` and, in the format of `sha256sum`, its sidecar."""
    temporary = path.with_name(path.name + ".tmp")
    digest = _write(state, temporary)
    # Dying between any two lines leaves data whose sidecar is its own or missing, never that of an older
    # save of the same step.
    sidecar(path).unlink(missing_ok=True)
    temporary.replace(path)
    sync_folder(path.parent)
    write_atomically(sidecar(path), f"{digest}  {path.name}\n".encode())


def _write(state: dict[str, Any], path: Path) -> str:
    """Put `state` on the disk; returns the SHA-256 of the bytes."""
    with _HashedFile(io.FileIO(path, "wb")) as file:
        torch.save(state, file)
        if file.error is not None:
            raise file.error
        file.flush()
        os.fsync(file.fileno())
    return file.sha256.hexdigest()


class _HashedFile(io.BufferedWriter):
    """Hashes what `torch.save` writes.

    Torch's writer turns an exception in `write` into one without its cause, so the first is kept in `error`.
    """

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any, /) -> int:
        self.sha256.update(data)
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return len(data)


def _read(path: Path, map_location: str | torch.device) -> dict[str, Any]:
    verify(path)
    try:
        state = torch.load(path, map_location=map_location, weights_only=True, mmap=False)
    except torch.OutOfMemoryError:
        raise  # says nothing about the file
    except pickle.UnpicklingError as error:
        raise RunError(f"{path} is no checkpoint of dino-ssl: more than plain types") from error
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise RunError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise RunError(f"{path} is no checkpoint of dino-ssl: a {type(state).__name__}, not a dict")
    return state


_PLAIN = {Tensor, nn.Parameter, bool, int, float, str, bytes, type(None)}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Everything in nested dicts, lists and tuples, with its path."""
    if type(value) in {dict, OrderedDict}:
        for key, item in value.items():
            yield f"key {key!r} of {name}", key
            yield from _leaves(item, f"{name}[{key!r}]")
    elif type(value) in {list, tuple}:
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}[{index}]")
    else:
        yield name, value


def check_plain(state: dict[str, Any]) -> None:
    """Refuse what `torch.load(weights_only=True)` would refuse, while the run can still be mended.

    Raises:
        TypeError: names the first such entry.
    """
    for name, leaf in _leaves(state, "state"):
        if type(leaf) not in _PLAIN:
            raise TypeError(f"{name} is a {type(leaf).__qualname__}, neither a tensor nor a plain type")


def capture_rng() -> dict[str, Any]:
    """State of this process's generators in plain types: python, numpy, torch, this rank's GPU if in use."""
    numpy = np.random.get_state(legacy=False)
    assert isinstance(numpy, dict)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()
    return {
        "python": random.getstate(),
        "numpy": numpy,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Continue where `capture_rng` was called; a GPU's state is left out where this process has no GPU."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    # Generators take states from the CPU, wherever `map_location` put them.
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
