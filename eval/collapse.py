"""What centering and sharpening are for: entropy of the teacher and KL divergence without one, the other, or both.

    python -m eval.collapse [--output-dir DIR]

Four trainings on 1,437 digits, a minute each on one core, and collapse.png. To reach: the behaviour of
arXiv:2104.14294, figure 7. Centering alone: entropy to ln K, KL to 0. Sharpening alone: entropy to 0, KL to 0.
Neither: KL to 0. Both: entropy between the two, KL above 0.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dino_ssl.cli import answer
from dino_ssl.commands.parsing import Parser
from dino_ssl.config_flags import configure
from dino_ssl.config_kinds import PRETRAIN

PROTOTYPES = 1024
# Without batch norm in the head, which keeps images apart whatever the targets are.
SETTING = f"--preset digits --head.batch-norm false --head.prototypes {PROTOTYPES} --epochs 9 --knn.every-epochs 0"
NO_CENTERING = "--dino.center-momentum 1"
NO_SHARPENING = "--dino.teacher-temperature 0.1 --dino.warmup-teacher-temperature 0.1"  # the student's
RUNS = {
    "both": "",
    "centering only": NO_SHARPENING,
    "sharpening only": NO_CENTERING,
    "neither": f"{NO_CENTERING} {NO_SHARPENING}",
}
PANELS = {"collapse/teacher_entropy": "entropy of the teacher (nats)", "collapse/divergence": "KL divergence (nats)"}


def main(arguments: Sequence[str]) -> None:
    """Train, draw, print."""
    parser = Parser(program="python", command="-m eval.collapse", description=str(__doc__).splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs/collapse"), help="of the runs (%(default)s)")
    words = parser.read(arguments)
    if words is None:
        return
    lines = {name: trained(name, words.output_dir) for name in RUNS}
    draw(lines, words.output_dir / "collapse.png")
    print(f"{'run':<18}{'entropy':>9}{'of the mean':>13}{'KL':>9}   (ln K = {math.log(PROTOTYPES):.3f})")
    for name, (*_, last) in lines.items():
        numbers = (last[f"collapse/{part}"] for part in ("teacher_entropy", "mean_entropy", "divergence"))
        print("{:<18}{:>9.3f}{:>13.3f}{:>9.3f}".format(name, *numbers))
    print(f"picture  {words.output_dir / 'collapse.png'}")


def trained(name: str, folder: Path) -> list[dict[str, Any]]:
    """The lines of the journal that have statistics."""
    from dino_ssl.training.journal import read_metrics  # noqa: PLC0415
    from dino_ssl.training.pretraining import pretrain  # noqa: PLC0415

    run = folder / name.replace(" ", "_")
    config, _ = configure([*SETTING.split(), *RUNS[name].split(), "--output-dir", str(run)], PRETRAIN)
    pretrain(config)
    return [line for line in read_metrics(run) if "collapse/divergence" in line]


def draw(lines: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Both numbers over epochs, a curve for each run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    for axis, (key, label) in zip(figure.subplots(1, 2), PANELS.items(), strict=True):
        for name, run in lines.items():
            axis.plot([line["epoch"] for line in run], [line[key] for line in run], label=name)
        axis.set(xlabel="epoch", ylabel=label, ylim=(0, None))
        axis.grid(alpha=0.25)
        if key == "collapse/teacher_entropy":
            axis.axhline(math.log(PROTOTYPES), color="#777777", linestyle="--", label="ln K")
            axis.legend(frameon=False)
    FigureCanvasAgg(figure).print_png(path)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.collapse"))
