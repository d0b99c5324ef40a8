"""The original linear protocol on real digits, here and on ranks, for `test_linear_original`."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_runs import SERVER, as_torchrun, free_port, write_digits

from dino_ssl.data.sources import labels_in, open_source
from dino_ssl.evaluation.linear_features import Choice
from dino_ssl.models.backbone import build_backbone
from dino_ssl.models.encoder import Encoder
from dino_ssl.training import distributed
from dino_ssl.training.linear_original import Machine, OriginalProtocol, Task, encoded, train_original

CPU = torch.device("cpu")
NUM_IMAGES = 80
PROTOCOL = OriginalProtocol(Choice(2, patches=False), epochs=3, learning_rate=0.5, batch_size=24, seed=3)


def an_encoder() -> Encoder:
    torch.manual_seed(0)
    backbone = build_backbone("vit_micro", image_size=16, patch_size=8).eval().requires_grad_(False)
    return Encoder(backbone, "vit_micro/8", "made", "digest", "", 16, 0.875, (0.5,) * 3, (0.25,) * 3)


def a_task(folder: Path, choice: Choice = PROTOCOL.choice) -> Task:
    """Eighty digits to learn, and their own first half in the middle of the picture to be tested on."""
    if not folder.exists():
        write_digits(folder)
    source, encoder = open_source(str(folder), folder), an_encoder()
    pixels = np.stack([source.raw(index) for index in range(NUM_IMAGES // 2)])
    crops = torch.from_numpy(pixels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
    features = encoded(torch.nn.functional.interpolate(crops, size=16), encoder, choice, Machine(CPU))
    labels = torch.from_numpy(labels_in(source, source.classes))
    return Task(encoder, source, labels, len(source.classes), features, labels[: NUM_IMAGES // 2])


def saved_in(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(folder / "checkpoint.pth", weights_only=True)
    return state


def train_on_ranks(num_ranks: int, images: Path, folder: Path) -> list[str]:
    """What each rank raised, or nothing."""
    port, results = free_port(), []
    for rank in range(num_ranks):
        receive, send = SERVER.Pipe(duplex=False)
        environment = as_torchrun(rank, num_ranks, port)
        SERVER.Process(target=_train_rank, args=(images, folder, environment, send), daemon=True).start()
        send.close()
        results.append(receive)
    assert all(receive.poll(timeout=300) for receive in results), "a rank waits for ever"
    return [receive.recv() for receive in results]


def _train_rank(images: Path, folder: Path, environment: dict[str, Any], send: Any) -> None:
    os.environ |= {name: str(value) for name, value in environment.items()}
    try:
        with distributed.process_group(CPU, folder):
            train_original(a_task(images), PROTOCOL, Machine(CPU, folder=folder))
    except Exception as error:
        send.send(f"{type(error).__name__}: {error}")
    else:
        send.send("")
