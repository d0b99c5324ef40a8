"""Which stage of a teacher helps which stage of a student: a run for each pair, and the table as a picture.

    python -m eval.cross_stage RECIPE.yaml ... --teacher.weights FILE --output-dir FOLDER [flags of finetune distill]

Protocol of Chen et al. 2021 (arXiv:2104.09044), table 1: of each run one level of the student is brought to one level
of the teacher by a 1x1 convolution, BN and a nearest resize, and compared by the mean squared error; all else is the
recipe's. A last level is the pooled features. To reach (paper): a deeper or equal level of the student learns from a
shallower one of the teacher; a shallow level of the student learns little from a deep one, or is harmed.
"""

import sys
from collections.abc import Sequence

from dino_ssl.cli import answer
from dino_ssl.config_distill import DistillConfig
from eval.distillation import UNTAUGHT, Table, configured, draw, save, taught, untaught


def main(arguments: Sequence[str]) -> None:
    """Train every pair, print, draw."""
    config = configured(arguments, str(__doc__))
    if config is None:
        return
    num = num_levels(config)
    baseline = untaught(config)
    table = [[pair_of(config, student, teacher) for teacher in range(num)] for student in range(num)]
    named = {f"student {i}, teacher {j}": table[i][j] for i in range(num) for j in range(num)}
    save(config, "cross_stage", {UNTAUGHT: baseline, **named})
    levels = [*(f"stage {stage}" for stage in range(1, num)), "pooled"]
    path = config.output_dir / "cross_stage.png"
    rows, columns = ([f"{network}\n{level}" for level in levels] for network in ("student", "teacher"))
    draw(path, Table(table, rows, columns, baseline))
    print(f"\n{UNTAUGHT:<24}{baseline:.2%}")
    for name, top1 in named.items():
        print(f"{name:<24}{top1:.2%}  {top1 - baseline:+.2%}")
    print(f"\ntable  {path}")


def pair_of(config: DistillConfig, student: int, teacher: int) -> float:
    """Accuracy with this pair of levels alone."""
    knobs = {"design": "same", "pair": (student, teacher), "hierarchical": False}
    return taught(config, f"student_{student}_teacher_{teacher}", **knobs)


def num_levels(config: DistillConfig) -> int:
    """Levels that both networks have."""
    from dino_ssl.finetuning.start import started  # noqa: PLC0415
    from dino_ssl.finetuning.student import num_levels_of  # noqa: PLC0415
    from dino_ssl.finetuning.teacher import open_teacher  # noqa: PLC0415

    config, backbone = started(config)
    return num_levels_of(backbone, open_teacher(config, ()).dims)


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.cross_stage"))
