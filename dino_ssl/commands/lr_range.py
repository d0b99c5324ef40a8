"""`dino-ssl lr-range`: which learning rates a recipe bears, on its own images."""

import json
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dino_ssl.commands.parsing import Parser, real, whole
from dino_ssl.config_flags import configure
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.durable import naming
from dino_ssl.errors import UsageError

if TYPE_CHECKING:
    from dino_ssl.config import PretrainConfig
    from dino_ssl.training.rate_sweep import Sweep

SUMMARY = "Train some steps with a rising learning rate, and draw the loss against it; no run is started or changed."
USAGE = "dino-ssl lr-range [RECIPE.yaml ...] [--lowest LR] [--highest LR] [--sweep-steps N] [any option of pretrain]"


def run(arguments: Sequence[str]) -> None:
    """`dino-ssl lr-range`.

    Raises:
        UsageError: a mistake in the arguments, or as `dino-ssl pretrain` before its first step.
    """
    parser = _parser()
    if {"-h", "--help"} & set(arguments):
        print(parser.format_help(), end="")
        return
    words, others = parser.parse_known_args(arguments)
    if words.lowest >= words.highest:
        raise UsageError(f"--lowest={words.lowest:g} must be below --highest={words.highest:g}")
    config, notes = configure(others, PRETRAIN)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for note in notes:
        logging.info("note: %s", note)
    _report(config, _sweep(config, words.lowest, words.highest, words.sweep_steps))


def _parser() -> Parser:
    parser = Parser(command="lr-range", description=SUMMARY, usage=USAGE)
    add = parser.add_argument
    add("--lowest", type=real(0, open_below=True), default=1e-6, metavar="LR", help="first rate (%(default)s)")
    add("--highest", type=real(0, open_below=True), default=1.0, metavar="LR", help="last rate (%(default)s)")
    add("--sweep-steps", type=whole(10), default=120, metavar="N", help="steps from one to the other (%(default)s)")
    return parser


def _sweep(config: "PretrainConfig", lowest: float, highest: float, steps: int) -> "Sweep":
    from dino_ssl.training.machine import check_environment, share_cores  # noqa: PLC0415
    from dino_ssl.training.pretraining import prepare  # noqa: PLC0415
    from dino_ssl.training.rate_sweep import sweep  # noqa: PLC0415

    device = check_environment(config)
    share_cores(config, device)
    opened = prepare(config, device)
    if steps > opened.task.total_steps:
        raise UsageError(
            f"--sweep-steps={steps} is longer than the run of {opened.task.total_steps} steps; write at most that"
        )
    return sweep(opened, lowest=lowest, highest=highest, steps=steps)


def _report(config: "PretrainConfig", found: "Sweep") -> None:
    """The picture, the numbers behind it, and what the rule for batches makes of them."""
    from dino_ssl.dino.schedules import scaled_learning_rate  # noqa: PLC0415
    from dino_ssl.training.rate_sweep import draw  # noqa: PLC0415

    present = scaled_learning_rate(config.optim.lr, config.batch_size)
    picture, numbers = (config.output_dir / name for name in ("lr_range.png", "lr_range.json"))
    with naming(config.output_dir):
        config.output_dir.mkdir(parents=True, exist_ok=True)
        numbers.write_text(json.dumps(_numbers(config, found), indent=1) + "\n")
        draw(found, picture, present=present)
    print(f"batch {config.batch_size}, {len(found.rates)} steps")
    for name, rate in (("steepest descent", found.steepest()), ("divergence", found.divergence())):
        if rate is None:
            print(f"{name:<18}none between {found.rates[0]:.2g} and {found.rates[-1]:.2g}")
        else:
            print(f"{name:<18}{rate:.2g}, that is optim.lr={rate / scaled_learning_rate(1.0, config.batch_size):.2g}")
    print(f"{'now':<18}{present:.2g}, that is optim.lr={config.optim.lr:.2g}")
    print("the optimizer's rate is optim.lr * batch_size / 256: the same optim.lr suits other batches")
    print(f"picture  {picture}")


def _numbers(config: "PretrainConfig", found: "Sweep") -> dict[str, Any]:
    series = {name: vars(found)[name].tolist() for name in ("rates", "losses", "gaps", "information")}
    finite = {name: [value if math.isfinite(value) else None for value in row] for name, row in series.items()}
    readings = {"steepest": found.steepest(), "divergence": found.divergence()}
    return {"batch_size": config.batch_size, **readings, **finite}
