"""Runs of a few seconds on real digits, here and in processes that may be killed, for the tests beside this file.

An epoch has five steps of sixteen images.
"""

import json
import multiprocessing
import os
import shutil
import socket
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from dino_ssl.config import PretrainConfig
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.config_yaml import from_dict
from dino_ssl.training import distributed
from dino_ssl.training.loop import train
from dino_ssl.training.plan import DinoRates
from dino_ssl.training.prepare import begin
from dino_ssl.training.pretraining import prepare, pretrain
from dino_ssl.training.run import Run

BATCH, STEPS_PER_EPOCH = 16, 5

# Threads that wait for each other on cores with other work make such small runs a hundred times slower: one
# thread here, and in the processes that are started below.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Forks of a server that has imported everything start in a fraction of a second, from the same clean state.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["dino_ssl.training.pretraining", "sklearn.datasets"])


def write_digits(folder: Path, *, first: int = 0) -> str:
    """One epoch of digits with labels, as arrays; the SOURCE to open them."""
    digits = load_digits()
    part = slice(first, first + BATCH * STEPS_PER_EPOCH)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "x_train.npy", (digits.images[part] * 255 / 16).round().astype(np.uint8))
    np.save(folder / "y_train.npy", digits.target[part])
    return str(folder)


def a_config(folder: Path, **changes: Any) -> PretrainConfig:
    """A run in `folder`/run on `folder`/images, small enough for seconds; sections in `changes` are merged."""
    tree: dict[str, Any] = {
        "data": str(folder / "images"),
        "output_dir": str(folder / "run"),
        "steps": 8,
        "batch_size": BATCH,
        "device": "cpu",
        "precision": "fp32",
        "crops": {"global_size": 16, "local_size": 8, "num_local_crops": 2, "blur": [0.0, 0.0, 0.0]},
        "model": {"name": "vit_micro", "patch_size": 8, "drop_path": 0.2},
        "head": {"prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8, "norm_last_layer": False},
        "dino": {"momentum": 0.9},
        "optim": {"lr": 0.004, "warmup_epochs": 0.4, "freeze_last_layer_epochs": 0.4},
        "loader": {"num_workers": 0},
        "knn": {"every_epochs": 0},
        "checkpoint": {"every_steps": 1, "keep_last": 99},
        "log": {"every_steps": 1},
    }
    for name, value in changes.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    if not Path(tree["data"]).exists():
        write_digits(Path(tree["data"]))
    return from_dict(tree, PRETRAIN)


def run_here(config: PretrainConfig) -> Run[DinoRates]:
    """Resume and train to the end in this process, without the pictures."""
    run = prepare(config, torch.device("cpu"))
    begin(run)
    with run.journal:
        train(run)
    return run


def checkpoint_path(config: PretrainConfig, step: int) -> Path:
    return config.output_dir / "checkpoints" / f"checkpoint_{step:09d}.pth"


def saved_steps(config: PretrainConfig) -> list[int]:
    names = [path.stem for path in (config.output_dir / "checkpoints").glob("checkpoint_*.pth")]
    return sorted(int(name.removeprefix("checkpoint_")) for name in names)


def as_killed_after(config: PretrainConfig, kept: set[int], folder: Path, **changes: Any) -> PretrainConfig:
    """A copy of a run as a kill would have left it: the journal, and of the checkpoints those of steps `kept`."""
    other = a_config(folder, **{"data": config.data, "steps": config.steps, **changes})
    shutil.copytree(config.output_dir, other.output_dir)
    for step in set(saved_steps(other)) - kept:
        checkpoint_path(other, step).unlink()
        checkpoint_path(other, step).with_suffix(".pth.sha256").unlink()
    newest = other.output_dir / "checkpoints" / "checkpoint.pth"
    newest.unlink()
    newest.hardlink_to(checkpoint_path(other, max(kept)))
    return other


def state_after(config: PretrainConfig, step: int) -> dict[str, Any]:
    """What a resume from the checkpoint of `step` would need; not the knobs that may change."""
    state: dict[str, Any] = torch.load(checkpoint_path(config, step), weights_only=True)
    assert state.pop("step") == step
    # Nothing here draws from the generators of python and numpy, which begin anywhere.
    state["rng"] = [rank["torch"] for rank in state["rng"]]
    del state["config"], state["saved_steps"], state["sound_step"]
    return state


def assert_bitwise_equal(one: Any, other: Any, name: str = "state") -> None:
    assert type(one) is type(other), name
    match one:
        case dict():
            assert one.keys() == other.keys(), name
            for key in one:
                assert_bitwise_equal(one[key], other[key], f"{name}[{key!r}]")
        case list():
            for index, pair in enumerate(zip(one, other, strict=True)):
                assert_bitwise_equal(*pair, f"{name}[{index}]")
        case torch.Tensor():
            assert one.dtype == other.dtype and torch.equal(one, other), name
        case _:
            assert one == other, name


def journal_without_times(config: PretrainConfig) -> tuple[list[dict[str, Any]], str]:
    """Lines of metrics.jsonl less what a clock measured, and log.txt."""
    lines = [json.loads(line) for line in (config.output_dir / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in x.items() if k != "time" and not k.startswith("speed/")} for x in lines]
    log = config.output_dir / "log.txt"
    return timeless, log.read_text() if log.exists() else ""


def start_server() -> None:
    """Have everything imported before the first `start`, which would wait for it."""
    process = SERVER.Process(target=int)
    process.start()
    process.join()


def start(config: PretrainConfig) -> BaseProcess:
    """Begin `pretrain(config)` in a process of its own."""
    process = SERVER.Process(target=_pretrain, args=(config,))
    process.start()
    return process


def as_torchrun(rank: int, num_ranks: int, port: int) -> dict[str, Any]:
    """The environment that names a rank, and where rank 0 listens."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
    return {**numbers, "MASTER_ADDR": "127.0.0.1"}


def as_submitit(rank: int, num_ranks: int, port: int) -> dict[str, Any]:
    """The environment that names a rank alone."""
    numbers = {"GLOBALID": rank, "LOCALID": rank, "NTASKS": num_ranks, "NNODES": 1, "JOB_ID": 77}
    return {f"SUBMITIT_LOCAL_{name}": number for name, number in numbers.items()} | {"SUBMITIT_EXECUTOR": "local"}


def pretrain_on_ranks(
    num_ranks: int, config: PretrainConfig, launcher: Callable[[int, int, int], dict[str, Any]] = as_torchrun
) -> list[str]:
    """`pretrain(config)` as a launcher would start it; what each rank raised, or nothing."""
    return _said_by_ranks(num_ranks, _pretrain_rank, config, launcher)


def on_ranks(num_ranks: int, call: Callable[[], Any]) -> list[Any]:
    """What `call()` gives in each of several processes that are joined to a group; tensors aside."""
    return _said_by_ranks(num_ranks, _call_on_rank, call, as_torchrun)


def _said_by_ranks(
    num_ranks: int, target: Callable[..., None], task: Any, launcher: Callable[[int, int, int], dict[str, Any]]
) -> list[Any]:
    port, results, processes = free_port(), [], []
    for rank in range(num_ranks):
        receive, send = SERVER.Pipe(duplex=False)
        arguments = (task, launcher(rank, num_ranks, port), send)
        processes.append(SERVER.Process(target=target, args=arguments, daemon=True))
        processes[-1].start()
        send.close()
        results.append(receive)
    assert all(receive.poll(timeout=300) for receive in results), "a rank waits for ever"
    said = [receive.recv() for receive in results]
    for process in processes:
        process.join()
    return said


def _pretrain(config: PretrainConfig) -> None:
    # The fork shares the tests' stderr.
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
    pretrain(config)


def _pretrain_rank(config: PretrainConfig, environment: dict[str, Any], send: Connection) -> None:
    os.environ |= {name: str(value) for name, value in environment.items()}
    try:
        _pretrain(config)
    except Exception as error:
        send.send(f"{type(error).__name__}: {error}")
    else:
        send.send("")


def _call_on_rank(call: Callable[[], Any], environment: dict[str, Any], send: Connection) -> None:
    os.environ |= {name: str(value) for name, value in environment.items()}
    with distributed.process_group(torch.device("cpu"), Path("unused")):
        send.send(call())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
