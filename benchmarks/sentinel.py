"""What watching for collapse costs: `python -m benchmarks.sentinel`.

A step of ViT-S/16 with 65,536 prototypes on few images, 2 global and 8 local crops, in parts: the step itself, what is
added to each of its micro-batches, and what is computed once per line of the journal. Medians of interleaved rounds
(CPU time; on a GPU, the time until it is done), as shares of a step.
"""

import argparse
from functools import partial

import torch

from benchmarks.step import Setting, make_steps, medians
from dino_ssl.config import Log
from dino_ssl.dino.losses import dino_loss, teacher_probabilities

EMBED = 256  # of the bottleneck


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    setting = Setting("vit_small", flags.batch, prototypes=65_536, device=flags.device)
    step = make_steps(setting, compile=False)[1]["fp32"]
    observations = step.method.observations
    logits, teacher = (0.3 * torch.randn(views, flags.batch, 65_536, device=flags.device) for views in (10, 2))
    targets = teacher_probabilities(teacher, step.method.center.center, 0.04)
    loss, features = dino_loss(logits, targets, 0.1), torch.randn(2 * flags.batch, EMBED, device=flags.device)
    for _ in range(-(-observations.num_features // len(features))):
        observations.keep(features)

    def watch() -> None:
        observations.add(targets, logits, loss)
        observations.keep(features)

    actions = {"step": partial(step.step, setting.views()), "watch": watch, "look": step.method.look}
    times = medians(actions, flags.rounds, flags.device)
    every = Log().every_steps
    print(f"torch {torch.__version__}, {flags.device}, {flags.threads} threads, {flags.rounds} rounds")
    for name, seconds in times.items():
        print(f"  {name:8}{1000 * seconds:10.2f} ms{seconds / times['step']:10.3%} of a step")
    share = (times["watch"] + times["look"] / every) / times["step"]
    print(f"all together, a look every {every} steps: {share:.3%} of a step")


if __name__ == "__main__":
    main()
