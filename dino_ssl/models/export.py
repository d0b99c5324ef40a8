"""Encoders as files for other programs; each is read back and compared before it gets its name."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import timm
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from dino_ssl.checksums import write_sidecar
from dino_ssl.errors import RunError, UsageError
from dino_ssl.models.cmt import CMT
from dino_ssl.models.cmt_keys import STRIDE
from dino_ssl.models.encoder import Encoder
from dino_ssl.models.timm_adapter import TimmBackbone
from dino_ssl.models.timm_card import TimmCard, timm_card
from dino_ssl.models.vit import VisionTransformer
from dino_ssl.models.weight_files import read_weight_file

NUM_IMAGES = 3
LARGEST_DIFFERENCE = 1e-4
"""Of two features, over the largest feature: float32 in another order of summation stays far below."""
LARGEST_ONNX = 1_900_000_000
"""Bytes of weights that fit into one ONNX file."""
ENDINGS = {"timm": "", "torch": ".pth", "safetensors": ".safetensors", "onnx": ".onnx"}

Features = Callable[[Float[Tensor, "b c x y"]], Float[Tensor, "b d"]]


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its features are from the encoder's, over the largest of them."""

    path: Path
    difference: float
    num_images: int


def export(encoder: Encoder, form: str, path: Path) -> Exported:
    """Write the encoder to a path that does not exist yet, and read it back.

    Args:
        form: timm (a folder with `model.safetensors` and `config.json`), torch or safetensors (a state dict with the
            original's names) or onnx (from normalised images of the encoder's size to features, for any number of
            images).
    Raises:
        UsageError: the path exists or has another ending, the format cannot hold the network, an extra is missing.
        RunError: what was written does not compute the same; it is deleted.
    """
    _check_path(form, path)
    unfinished = path.with_name(f"{path.stem}.unfinished{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _delete(unfinished)  # of a process that was killed
    try:
        features = _WRITERS[form](encoder, unfinished)
        difference = _difference(encoder, features)
        if not difference <= LARGEST_DIFFERENCE:
            raise RunError(
                f"{path} would not compute the same: its features differ by {difference:.1e} of the largest; it was "
                "deleted. Please report this with the versions of torch and timm"
            )
        unfinished.rename(path)
    finally:
        _delete(unfinished)
    return Exported(path, difference, NUM_IMAGES)


def _check_path(form: str, path: Path) -> None:
    if path.suffix != ENDINGS[form] and form != "timm":
        raise UsageError(f"output={path} must end in {ENDINGS[form]}; write --output {path.with_suffix(ENDINGS[form])}")
    if path.exists():
        raise UsageError(f"output={path} exists, and nothing is overwritten; write --output with another path")


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _write_timm(encoder: Encoder, folder: Path) -> Features:
    card = timm_card(encoder)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(card.config(encoder), indent=2) + "\n", encoding="utf-8")
    file = folder / "model.safetensors"
    save_file(card.tensors, file, metadata={"format": "pt", "name": encoder.name, "digest": encoder.digest})
    file.chmod((folder / "config.json").stat().st_mode)  # safetensors makes it private
    for written in (file, folder / "config.json"):
        write_sidecar(written)
    return _timm_model(card, file)


def _timm_model(card: TimmCard, file: Path) -> Features:
    """As timm itself makes it from the file."""
    return cast(
        Features,
        timm.create_model(
            card.architecture, pretrained=False, num_classes=0, checkpoint_path=str(file), **card.arguments
        ).eval(),
    )


def _write_torch(encoder: Encoder, file: Path) -> Features:
    def save(state: dict[str, Tensor]) -> None:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's word for what the disk refuses
            raise RunError(f"{file} cannot be written ({error}); write --output with another path") from error

    return _write_state(encoder, "torch", file, save)


def _write_safetensors(encoder: Encoder, file: Path) -> Features:
    told = {"format": "pt", "name": encoder.name, "digest": encoder.digest, "size": str(encoder.size)}

    def save(state: dict[str, Tensor]) -> None:
        save_file({name: value.contiguous() for name, value in state.items()}, file, metadata=told)

    return _write_state(encoder, "safetensors", file, save)


def _write_state(encoder: Encoder, form: str, file: Path, save: Callable[[dict[str, Tensor]], None]) -> Features:
    network = deepcopy(cast(nn.Module, encoder.backbone))
    if isinstance(network, CMT) and network.patch_size != STRIDE:
        raise UsageError(
            f"format={form}: the tensors of a CMT do not say that its stem is the one for small images "
            "(model.small_stem); keep the run's checkpoint, or write --format onnx"
        )
    inner = network.model if isinstance(network, TimmBackbone) else network
    save(inner.state_dict())
    with torch.no_grad():
        for parameter in inner.parameters():
            parameter.fill_(float("nan"))  # whatever the file does not hold shows
    inner.load_state_dict(read_weight_file(file).content)
    return cast(Features, network)


def _write_onnx(encoder: Encoder, file: Path) -> Features:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UsageError(f"format=onnx needs {', '.join(missing)}; run pip install 'dino-ssl[onnx]'")
    network = cast(nn.Module, encoder.backbone)
    if (size := sum(value.nbytes for value in network.state_dict().values())) > LARGEST_ONNX:
        raise UsageError(f"format=onnx: a file holds up to 2 GB, these weights are {size:,} bytes; write --format timm")
    if isinstance(network, VisionTransformer):
        network = network.resized(encoder.size)
    try:
        torch.onnx.export(
            network,
            (seeded_images(encoder),),
            file,
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise RunError(
            f"PyTorch {torch.__version__} cannot write {encoder.name} as ONNX ({str(error).partition(chr(10))[0]}); "
            "write --format timm or torch"
        ) from error
    return _onnx_session(file)


def _onnx_session(file: Path) -> Features:
    import onnxruntime  # noqa: PLC0415  (an extra)

    session: Any = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["features"], {"images": images.numpy()})[0])


_WRITERS: dict[str, Callable[[Encoder, Path], Features]] = {
    "timm": _write_timm,
    "torch": _write_torch,
    "safetensors": _write_safetensors,
    "onnx": _write_onnx,
}


def seeded_images(encoder: Encoder) -> Float[Tensor, "b c s s"]:
    """Random images of the encoder's size, the same every time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(NUM_IMAGES, encoder.channels, encoder.size, encoder.size, generator=generator)


@torch.no_grad()
def _difference(encoder: Encoder, features: Features) -> float:
    """Largest difference on random images, one more than one at a time, over the largest feature."""
    images = seeded_images(encoder)
    expected = encoder.backbone(images)
    found = torch.cat([features(images[:1]), features(images[1:])])
    return ((found - expected).abs().max() / expected.abs().max()).item()
