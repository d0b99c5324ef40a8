"""Where profiles lie, which one is meant, and what is in it."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dino_ssl.config_schema import did_you_mean, nearest
from dino_ssl.config_yaml import read_entries
from dino_ssl.errors import UsageError
from launch.profiles import Profile, check, take, tasks_of_node

EXAMPLE = """\
    partition: gpu        # as `sinfo` lists them
    gpus_per_node: 8
    cpus_per_gpu: 8
    memory_per_gpu: 60    # GB
    time: 24:00:00"""


@dataclass(frozen=True)
class Chosen:
    """A profile, where it stands, why it was taken, and the keys that the command line set."""

    profile: Profile
    file: Path
    why: str
    changes: Mapping[str, Any]

    def line(self) -> str:
        """For the terminal."""
        nodes, tasks = self.profile.nodes, tasks_of_node(self.profile)
        return f"cluster   {self.file} ({self.why}): {nodes} {plural(nodes, 'node')} x {tasks} {plural(tasks, 'rank')}"


def plural(number: int, word: str) -> str:
    """The word as it stands after the number."""
    return word if number == 1 else f"{word}s"


def own_folder() -> Path:
    """The user's folder of profiles."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "dino_ssl" / "clusters"


def folders() -> list[Path]:
    """Where profiles are looked for; the user's own come first."""
    return [own_folder(), Path(__file__).parent / "clusters"]


def profile_paths() -> dict[str, Path]:
    """Name -> file of every profile; of two with one name the user's."""
    paths = [path for folder in reversed(folders()) for path in sorted(folder.glob("*.yaml"))]
    return {path.stem: path for path in paths}


def choose(name: str | None, changes: Mapping[str, Any], problems: Sequence[str] = ()) -> Chosen:
    """The profile called `name`, or the one for this host, or the only one of the user, with `changes` on top.

    Args:
        changes: keys that the command line sets.
        problems: mistakes found before, to be reported with those found here.
    Raises:
        UsageError: no profile is meant, or there are mistakes in it, all of them.
    """
    try:
        path, why = _find(name)
    except UsageError as error:
        raise UsageError(*problems, *error.problems) from error
    values, found = read(path)
    found = [*problems, *found]
    profile = replace(Profile(**values), **changes)
    found += [f"{path}: {problem}" for problem in check(profile)]
    if found:
        raise UsageError(*found)
    return Chosen(profile, path, why, changes)


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The sound values of a profile, and every mistake in the file."""
    entries, problems = read_entries(path)
    values: dict[str, Any] = {}
    found = (take(values, entry.where, entry.key, entry.value) for entry in entries)
    return values, problems + [problem for problem in found if problem]


def _find(name: str | None) -> tuple[Path, str]:
    paths = profile_paths()
    if name is not None and name.endswith((".yaml", ".yml")):
        return Path(name), "named by --cluster"
    if name is not None and name in paths:
        return paths[name], "named by --cluster"
    if name is not None:
        raise UsageError(f"--cluster={name} is unknown{did_you_mean(nearest(name, paths))}; {_how_to_write(paths)}")
    host = socket.gethostname()
    for path in paths.values():
        if pattern := _matching(path, host):
            return path, f"its hosts have {pattern}, this is {host}"
    own = sorted(own_folder().glob("*.yaml"))
    if len(own) == 1:
        return own[0], "your only one"
    raise UsageError(f"no profile fits this host ({host}) and --cluster names none; {_how_to_write(paths)}")


def _matching(path: Path, host: str) -> str | None:
    hosts = read(path)[0].get("hosts", ())
    names = (host, host.partition(".")[0], socket.getfqdn(host))
    return next((pattern for pattern in hosts if any(fnmatch(name, pattern) for name in names)), None)


def _how_to_write(paths: Mapping[str, Path]) -> str:
    own = own_folder() / "NAME.yaml"
    return (
        f"choose one of {', '.join(sorted(paths))} with --cluster, or write your own into {own}, for example\n"
        f"{EXAMPLE}\n  and then: --cluster NAME; all keys: python -m launch.slurm profile"
    )
