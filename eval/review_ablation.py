"""What each part of knowledge review adds: a run for each combination, and the table as a picture.

    python -m eval.review_ablation RECIPE.yaml ... --teacher.weights FILE --output-dir FOLDER [flags]

Flags are those of finetune distill. Rows of Chen et al. 2021 (arXiv:2104.09044), table 7. To reach, ResNet-20 from 56
on CIFAR-100 in a reproduction: levels alone 69.50, review 69.53, + residual 69.92, + ABF 71.28, HCL without ABF 71.51,
all 71.79.
"""

import sys
from collections.abc import Sequence

from dino_ssl.cli import answer
from eval.distillation import UNTAUGHT, Table, configured, draw, save, taught, untaught

ROWS = {
    "same levels": {"design": "same", "attention": False, "hierarchical": False},
    "review": {"design": "review", "attention": False, "hierarchical": False},
    "+ residual": {"design": "residual", "attention": False, "hierarchical": False},
    "+ residual + ABF": {"design": "residual", "attention": True, "hierarchical": False},
    "+ residual + HCL": {"design": "residual", "attention": False, "hierarchical": True},
    "+ residual + ABF + HCL": {"design": "residual", "attention": True, "hierarchical": True},
}
"""Knobs of `review` by the name of the row."""


def main(arguments: Sequence[str]) -> None:
    """Train every row, print, draw."""
    config = configured(arguments, str(__doc__))
    if config is None:
        return
    baseline = untaught(config)
    found = {name: taught(config, folder_of(name), **knobs) for name, knobs in ROWS.items()}
    save(config, "review_ablation", {UNTAUGHT: baseline, **found})
    path = config.output_dir / "review_ablation.png"
    draw(path, Table([[top1] for top1 in found.values()], list(found), ["last checkpoint"], baseline))
    print(f"\n{UNTAUGHT:<24}{baseline:.2%}")
    for name, top1 in found.items():
        print(f"{name:<24}{top1:.2%}  {top1 - baseline:+.2%}")
    print(f"\ntable  {path}")


def folder_of(name: str) -> str:
    """`residual_abf` of `+ residual + ABF`."""
    return "_".join(name.lower().replace("+", " ").split())


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.review_ablation"))
