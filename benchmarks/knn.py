"""Weighted k-NN against the original's one-hot form, scikit-learn and faiss: time, and memory above the features.

    python -m benchmarks.knn [--bank 50000] [--queries 10000] [--dim 384] [--classes 1000]

Every candidate runs in a process of its own, on the same random features, and gives top-1 for k = 10, 20, 100 and 200;
scikit-learn, which takes one k at a time, for 20 alone. faiss is left out where it is not installed. Where other
programs run, compare CPU time on one thread (OMP_NUM_THREADS=1): threads that wait for each other count as busy.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_ssl.evaluation.knn import knn_accuracy

KS = (10, 20, 100, 200)
TEMPERATURE = 0.07
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def ours(data: Data, num_classes: int) -> list[float]:
    top1 = knn_accuracy(*data, ks=KS, temperature=TEMPERATURE).top1
    return [top1[k] for k in KS]


def one_hot(data: Data, num_classes: int) -> list[float]:
    """The original's form: a hundredth of the queries at a time, a one-hot vector for each neighbour, for each k."""
    bank, labels, queries, truth = F.normalize(data[0]), data[1], F.normalize(data[2]), data[3]
    right = dict.fromkeys(KS, 0)
    for part in range(0, len(queries), len(queries) // 100):
        rows = slice(part, part + len(queries) // 100)
        similarity, places = (queries[rows] @ bank.T).topk(max(KS))
        for k in KS:
            votes = F.one_hot(labels[places[:, :k]], num_classes).float()
            scores = (votes * similarity[:, :k].div(TEMPERATURE).exp()[..., None]).sum(1)
            right[k] += int((scores.sort(1, descending=True).indices[:, 0] == truth[rows]).sum())
    return [right[k] / len(queries) for k in KS]


def scikit_learn(data: Data, num_classes: int) -> list[float]:
    from sklearn.neighbors import KNeighborsClassifier  # noqa: PLC0415

    bank, labels, queries, truth = (tensor.numpy() for tensor in data)
    weights = lambda distance: np.exp((1 - distance) / TEMPERATURE)  # noqa: E731
    model = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=weights).fit(bank, labels)
    return [float((model.predict(queries) == truth).mean())]


def faiss(data: Data, num_classes: int) -> list[float]:
    import faiss as library  # noqa: PLC0415

    bank, labels, queries, truth = F.normalize(data[0]).numpy(), data[1], F.normalize(data[2]).numpy(), data[3]
    index = library.IndexFlatIP(bank.shape[1])
    index.add(bank)
    similarity, places = (torch.from_numpy(found) for found in index.search(queries, max(KS)))
    weights, found = (similarity / TEMPERATURE).exp(), labels[places]
    votes = {k: torch.zeros(len(queries), num_classes).scatter_add_(1, found[:, :k], weights[:, :k]) for k in KS}
    return [float((votes[k].argmax(1) == truth).double().mean()) for k in KS]


CANDIDATES: dict[str, Callable[[Data, int], list[float]]] = {
    "one-hot": one_hot,
    "dino-ssl": ours,
    "scikit-learn": scikit_learn,
    "faiss": faiss,
}


def features(words: argparse.Namespace) -> Data:
    """Classes are clusters, so that neighbours mean something; no larger than what is asked for, at any time."""
    draw = torch.Generator().manual_seed(0)
    centers = torch.randn(words.classes, words.dim, generator=draw)
    made = []
    for number in (words.bank, words.queries):
        labels = torch.randint(words.classes, (number,), generator=draw)
        values = torch.empty(number, words.dim).normal_(0, 3, generator=draw)
        for rows in torch.arange(number).split(1000):
            values[rows] += centers[labels[rows]]
        made += [values, labels]
    return made[0], made[1], made[2], made[3]


def measure(words: argparse.Namespace) -> None:
    """In the process of one candidate."""
    data = features(words)
    CANDIDATES[words.only](tuple(part[:1000] for part in data), words.classes)  # libraries load, threads start
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, begin, begin_cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    top1 = CANDIDATES[words.only](data, words.classes)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
    print(seconds, cpu, memory("VmHWM") - before, *top1)


def memory(name: str) -> float:
    """MiB of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    for name, default in (("bank", 50_000), ("queries", 10_000), ("dim", 384), ("classes", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default, help="(%(default)s)")
    parser.add_argument("--only", choices=CANDIDATES, help="in this process")
    words = parser.parse_args()
    if words.only:
        measure(words)
        return
    sizes = f"{words.queries:,} queries x {words.bank:,} images x {words.dim}, {words.classes:,} classes"
    print(f"{sizes}; {torch.get_num_threads()} threads")
    print(f"{'':14}{'seconds':>9}{'ratio':>8}{'of CPU':>9}{'ratio':>8}{'MiB above':>11}  top-1 by k")
    first = None
    for name in CANDIDATES:
        command = [sys.executable, "-m", "benchmarks.knn", "--only", name]
        command += [f"--{knob}={getattr(words, knob)}" for knob in ("bank", "queries", "dim", "classes")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name:14}left out: {done.stderr.strip().splitlines()[-1]}")
            continue
        seconds, cpu, peak, *top1 = map(float, done.stdout.split())
        first = first or (seconds, cpu)
        shown = " ".join(f"{value:.4f}" for value in top1)
        print(f"{name:14}{seconds:9.2f}{first[0] / seconds:8.2f}{cpu:9.2f}{first[1] / cpu:8.2f}{peak:11.0f}  {shown}")


if __name__ == "__main__":
    main()
