"""`dino-ssl inspect --backbone`: parameters, multiplications and activations of a network that nobody trained yet."""

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dino_ssl.commands.options import add_output
from dino_ssl.commands.parsing import Parser, whole
from dino_ssl.config import Crops, PretrainConfig
from dino_ssl.config_yaml import read_config
from dino_ssl.durable import naming, write_atomically
from dino_ssl.errors import UsageError

if TYPE_CHECKING:
    from dino_ssl.models.backbone import BuiltBackbone
    from dino_ssl.models.cost import Cost

NUM_GLOBAL_CROPS = 2
BATCH_SIZE = 64
ABOUT_WEIGHTS = ("key", "arch", "center_crop")


@dataclass(frozen=True)
class Pass:
    """What one network does with the crops of one size of an image, forward; activations are bytes of a whole batch."""

    network: str
    num_crops: int
    size: int
    macs: int
    activations: int


def add_cost(parser: Parser) -> None:
    """--backbone, --recipe, --small-stem, --batch-size, --output."""
    add = parser.add_argument
    add("--backbone", metavar="NAME", help="instead of a file: what this backbone costs at --size, as in model.name")
    crops = "whose backbone and crops to take (two of --size, eight of 3/7 of it)"
    add("--recipe", type=Path, metavar="FILE.yaml", help=crops)
    add("--small-stem", action="store_true", help="with --backbone: as model.small_stem")
    batch = f"with --backbone: images whose activations are counted together ({BATCH_SIZE})"
    add("--batch-size", type=whole(1), metavar="N", help=batch)
    add_output(parser)


def show_cost(words: Namespace) -> bool:
    """Measure and print what is asked for; False where a file of weights is meant instead.

    Raises:
        UsageError: both are asked for, or neither, or a size does not go through the network.
    """
    costs = words.backbone is not None or words.recipe is not None
    _check(words, costs=costs)
    if costs:
        _show(words, _configuration(words))
    return costs


def _check(words: Namespace, *, costs: bool) -> None:
    of_files = [name for name in ABOUT_WEIGHTS if getattr(words, name) not in (None, "teacher")]
    of_costs = [name for name in ("small_stem", "batch_size", "output") if getattr(words, name)]
    if costs and (words.weights is not None or of_files):
        what = words.weights or f"--{of_files[0].replace('_', '-')}"
        raise UsageError(f"{what} is about a file of weights, --backbone and --recipe are not; leave one of them out")
    if not costs and (words.weights is None or of_costs):
        what = "RUN_OR_FILE is not given" if words.weights is None else f"--{of_costs[0].replace('_', '-')} is of costs"
        raise UsageError(f"{what}; write a run's folder, a file of weights, or --backbone NAME")
    if costs and words.recipe and words.size:
        raise UsageError(f"--size={words.size}, but {words.recipe} says the sizes of its crops; leave one of them out")


def _configuration(words: Namespace) -> PretrainConfig:
    """The recipe, or the defaults with the wished size; flags go above both."""
    config = read_config([words.recipe]) if words.recipe else PretrainConfig()
    model = config.model
    model = replace(
        model,
        name=words.backbone or model.name,
        patch_size=words.patch_size or model.patch_size,
        small_stem=words.small_stem or model.small_stem,
    )
    return replace(config, model=model, crops=replace(config.crops, global_size=words.size or config.crops.global_size))


def _show(words: Namespace, config: PretrainConfig) -> None:
    from dino_ssl.models.backbone import check_crop_sizes  # noqa: PLC0415  (imports torch)
    from dino_ssl.models.cost import cost_of  # noqa: PLC0415
    from dino_ssl.training.build import fresh_backbone  # noqa: PLC0415

    backbone = fresh_backbone(config, drop_path=config.model.drop_path)
    crops = config.crops if words.recipe else replace(config.crops, local_size=_local_size(backbone, config.crops))
    sizes = {"crops.global_size" if words.recipe else "--size": crops.global_size}
    if crops.num_local_crops:
        sizes["crops.local_size"] = crops.local_size
    check_crop_sizes(backbone, sizes, crops.channels)
    costs = {size: cost_of(backbone, size, crops.channels) for size in set(sizes.values())}
    batch_size = words.batch_size or BATCH_SIZE
    passes = list(_passes(crops, costs, batch_size))
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    print("\n".join(_lines(f"{config.model.name}, {parameters:,} parameters", passes, batch_size)))
    if words.output is not None:
        told = {"backbone": asdict(config.model), "parameters": parameters, "batch_size": batch_size}
        content = told | {"passes": [asdict(one) for one in passes]}
        with naming(words.output):
            write_atomically(words.output, (json.dumps(content, indent=2) + "\n").encode())
        print(f"\nwritten to {words.output}")


def _local_size(backbone: "BuiltBackbone", crops: Crops) -> int:
    """In the proportion of the defaults, as the network's grid allows."""
    default = Crops()
    wished = crops.global_size * default.local_size / default.global_size
    try:
        step = backbone.patch_size
    except UsageError:  # features that lie on no grid
        step = 1
    return max(1, round(wished / step)) * step


def _passes(crops: Crops, costs: "dict[int, Cost]", batch_size: int) -> Iterator[Pass]:
    """Of one image; a batch's crops of one size go through the student together, and the teacher keeps nothing."""
    sets = [(NUM_GLOBAL_CROPS, crops.global_size), (crops.num_local_crops, crops.local_size)]
    for number, size in sets if crops.num_local_crops else sets[:1]:
        cost = costs[size]
        yield Pass("student", number, size, number * cost.macs, cost.activations(number * batch_size))
    yield Pass("teacher", *sets[0], NUM_GLOBAL_CROPS * costs[crops.global_size].macs, 0)


def _lines(title: str, passes: list[Pass], batch_size: int) -> Iterator[str]:
    one = passes[0]
    yield f"{title}; {one.macs / one.num_crops / 1e9:.4g} GMACs for an image of {one.size} px"
    yield f"{'forward':<20}{'GMACs an image':>16}{f'activations, {batch_size} images':>28}"
    for each in passes:
        name = f"{each.network} {each.num_crops} x {each.size} px"
        kept = f"{each.activations / 1e9:.2f} GB" if each.activations else "-"
        yield f"{name:<20}{each.macs / 1e9:>16.3f}{kept:>28}"
    total = sum(each.macs for each in passes), sum(each.activations for each in passes)
    yield f"{'together':<20}{total[0] / 1e9:>16.3f}{total[1] / 1e9:>25.2f} GB"
    yield "Of the backbone alone, without any head, in float32; the backward pass costs twice the student's forward."
