"""DINO runs of some ten seconds as Slurm jobs, for the tests beside this file."""

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from dino_ssl import config_kinds
from dino_ssl.config import PretrainConfig
from dino_ssl.config_yaml import from_dict, write_config

BATCH, STEPS = 16, 200
WAIT = 30  # step after which a disturbed run waits; its last checkpoint by itself is that of step 25
PRETRAIN = f"{sys.executable} -m dino_ssl pretrain recipe.yaml"
WAITING = f"{sys.executable} {Path(__file__).with_name('waiting_run.py')} {WAIT} pretrain recipe.yaml"
REPORTING = WAITING.replace(f" {WAIT} ", " report ")
FAILING = f"{sys.executable} {Path(__file__).with_name('failing_run.py')} pretrain recipe.yaml"


def a_recipe(folder: Path, **changes: Any) -> PretrainConfig:
    """A run in `folder`/run, and its recipe in `folder`/recipe.yaml."""
    digits = load_digits()
    (folder / "images").mkdir(parents=True)
    np.save(folder / "images" / "x_train.npy", (digits.images[:160] * 255 / 16).round().astype(np.uint8))
    np.save(folder / "images" / "y_train.npy", digits.target[:160])
    tree: dict[str, Any] = {
        "data": str(folder / "images"),
        "output_dir": str(folder / "run"),
        "steps": STEPS,
        "batch_size": BATCH,
        "device": "cpu",
        "precision": "fp32",
        "crops": {"global_size": 16, "local_size": 8, "num_local_crops": 2, "blur": [0.0, 0.0, 0.0]},
        "model": {"name": "vit_micro", "patch_size": 8, "drop_path": 0.2},
        "head": {"prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8, "norm_last_layer": False},
        "optim": {"lr": 0.004, "warmup_epochs": 2.0, "freeze_last_layer_epochs": 0.4},
        "loader": {"num_workers": 0},
        "knn": {"every_epochs": 0},
        "checkpoint": {"every_steps": 40},
        "log": {"every_steps": 1},
    }
    for name, value in changes.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    config = from_dict(tree, config_kinds.PRETRAIN)
    write_config(config, folder / "recipe.yaml")
    return config


def a_script(folder: Path, *directives: str, command: str = PRETRAIN) -> Path:
    """A batch script such as a person would write."""
    lines = "\n".join(f"#SBATCH {directive}" for directive in directives)
    text = f"""\
        #!/bin/bash
        #SBATCH --chdir={folder} --output={folder}/job.log --open-mode=append --requeue
        {lines.replace(chr(10), chr(10) + " " * 8)}
        export OMP_NUM_THREADS=1
        srun --kill-on-bad-exit=1 {command}
        """
    path = folder / "job.sh"
    path.write_text(textwrap.dedent(text))
    return path


def step_of(config: PretrainConfig) -> int:
    """The last step that was logged; 0 before the first."""
    path = config.output_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def restarts(config: PretrainConfig) -> list[dict[str, Any]]:
    path = config.output_dir / "restarts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def stops(config: PretrainConfig) -> list[str]:
    return [line["reason"] for line in restarts(config) if line["event"] == "stop"]


def final_weights(config: PretrainConfig) -> dict[str, Any]:
    state = torch.load(config.output_dir / "checkpoints" / "checkpoint.pth", weights_only=True)
    assert state["step"] == config.steps
    return {part: state[part] for part in ("student", "teacher", "dino_loss", "optimizer")}
