"""What a teacher is worth to faces of few pixels: no teacher, KD, F-SKD and A-SKD, at several sides and seeds.

    python -m eval.where_to_look launch/recipes/faces/askd_4x.yaml --data CASIA --look.teacher RUN --sides 56 28 14

Recipes and other flags are those of `dino-ssl finetune askd`; each run has its folder in --output-dir, where it
resumes. Source: arXiv:2209.14498, table 1: A-SKD 93.35, 88.58 and 79.00 % on AgeDB-30 at 2x, 4x and 8x (second hand);
arXiv:2303.04681 for F-SKD. Measured here: no.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dino_ssl.cli import answer
from dino_ssl.config_faces import AskdConfig, Look
from dino_ssl.config_flags import configure
from dino_ssl.config_kinds import ASKD
from dino_ssl.training.journal import read_metrics


def methods(look: Look) -> dict[str, Look]:
    """By name; a method whose weight is not set has weight 1."""
    base = replace(look, weight=0.0, feature_weight=0.0, logit_weight=0.0)
    return {
        "base": base,
        "KD": replace(base, logit_weight=look.logit_weight or 1.0),
        "F-SKD": replace(base, feature_weight=look.feature_weight or 1.0),
        "A-SKD": replace(base, weight=look.weight or 1.0),
    }


def trained(config: AskdConfig) -> dict[str, float]:
    """Verification of the last checkpoint, and how alike both networks look."""
    from dino_ssl.finetuning.askd import askd  # noqa: PLC0415

    score = askd(config).scores["last"]
    alike = [line["eval/look_similarity"] for line in read_metrics(config.output_dir) if "eval/look_similarity" in line]
    return {"verification": score, **({"look_similarity": alike[-1]} if alike else {})}


def table(config: AskdConfig, sides: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """A row for each side and method: means and deviations over seeds, and every number."""
    rows = []
    for side in sides:
        for name, look in methods(config.look).items():
            low, folder = replace(config.low_resolution, sides=(side,)), config.output_dir / f"{side}px_{name}"
            found = [
                trained(replace(config, low_resolution=low, look=look, seed=seed, output_dir=folder / f"seed_{seed}"))
                for seed in range(config.seed, config.seed + seeds)
            ]
            by_number = {number: [one[number] for one in found] for number in found[0]}
            rows.append({"side": side, "method": name, **{n: _summary(values) for n, values in by_number.items()}})
            print(
                "  ".join([f"{side:>4} px  {name:<6}", *(f"{n} {_summary(v)['text']}" for n, v in by_number.items())])
            )
    return rows


def _summary(values: Sequence[float]) -> dict[str, Any]:
    mean, deviation = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float("nan")
    return {"mean": mean, "deviation": deviation, "seeds": list(values), "text": f"{mean:.4f} ± {deviation:.4f}"}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[28, 14], help="pixels that students see")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each")
    words, rest = parser.parse_known_args(arguments)
    config, _ = configure(rest, ASKD)
    found = json.dumps(table(config, words.sides, words.seeds), indent=2)
    (config.output_dir / "where_to_look.json").write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(answer(lambda: main(sys.argv[1:]), "python -m eval.where_to_look"))
