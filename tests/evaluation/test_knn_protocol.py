import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from shares import on_ranks
from test_knn import make
from torch.nn import functional as F

from dino_ssl.errors import UsageError
from dino_ssl.evaluation import knn
from dino_ssl.evaluation.feature_store import Share
from dino_ssl.evaluation.features import Labelled
from dino_ssl.evaluation.knn import COSINE
from dino_ssl.evaluation.knn_protocol import Neighbours, check_shots, few_shot, whole_bank
from dino_ssl.models.backbone import build_backbone

ALONE = Share()


def one_hot_votes(bank, bank_labels, queries, k, num_classes):
    """As the original writes it, in float64: a one-hot vector of every neighbour's class, weighted and summed."""
    similarity, places = (F.normalize(queries.double()) @ F.normalize(bank.double()).T).topk(k)
    one_hot = F.one_hot(bank_labels[places], num_classes)
    return (one_hot * (similarity / 0.07).exp()[..., None]).sum(1)


@pytest.mark.parametrize(("num_queries", "num_classes"), [(7, 3), (300, 20), (40, 5000)])
def test_votes_and_predictions_for_all_k_at_once_are_those_of_the_one_hot_sum(num_queries, num_classes):
    bank, labels, queries, _ = make(6000, num_queries, dim=32, num_classes=num_classes)
    rule = knn._Rule((10, 20, 100, 200), 0.07, False, COSINE)
    seen = {k: [] for k in rule.ks}
    for _, k, votes in knn._vote_tables(bank, labels, queries, rule, num_classes):
        seen[k].append(votes)
    for k, tables in seen.items():
        votes, expected = torch.cat(tables), one_hot_votes(bank, labels, queries, k, num_classes)
        assert votes.argmax(1).tolist() == expected.argmax(1).tolist()
        shares = votes.double() / votes.double().sum(1, keepdim=True)
        torch.testing.assert_close(shares, expected / expected.sum(1, keepdim=True), atol=1e-5, rtol=0)


def rows(measurements):
    return {(m.metric, m.settings["k"]): m.value for m in measurements}


def test_rows_are_top1_top5_and_macro_for_each_k():
    bank, bank_labels, queries, query_labels = make(300, 60)
    settings = Neighbours((3, 20))
    found = rows(whole_bank(Labelled(bank, bank_labels), Labelled(queries, query_labels), settings, ALONE))
    assert set(found) == {(f"knn/{name}", k) for name in ("top1", "top5", "macro") for k in (3, 20)}
    for k in (3, 20):
        order = one_hot_votes(bank, bank_labels, queries, k, 7).argsort(dim=1, descending=True, stable=True)
        hits = order == query_labels[:, None]
        assert found["knn/top1", k] == pytest.approx(hits[:, 0].double().mean().item())
        assert found["knn/top5", k] == pytest.approx(hits[:, : min(5, k)].any(1).double().mean().item())
        by_class = [hits[query_labels == label, 0].double().mean().item() for label in query_labels.unique()]
        assert found["knn/macro", k] == pytest.approx(np.mean(by_class))


@pytest.mark.parametrize("leave_one_out", [True, False])
@pytest.mark.parametrize("world_size", [2, 3, 50])
def test_queries_cut_among_ranks_give_the_numbers_of_one(world_size, leave_one_out):
    bank_values, bank_labels, query_values, query_labels = make(120, 40)
    bank = Labelled(bank_values, bank_labels)
    queries = bank if leave_one_out else Labelled(query_values, query_labels)
    settings = Neighbours((1, 5))
    alone = whole_bank(bank, queries, settings, ALONE)
    for found in on_ranks(world_size, lambda share: whole_bank(bank, queries, settings, share)):
        assert found == alone


def test_a_few_shot_bank_has_so_many_of_each_class_and_another_draw_each_try():
    bank_values, bank_labels, query_values, query_labels = make(200, 50)
    bank, queries = Labelled(bank_values, bank_labels), Labelled(query_values, query_labels)
    mean, deviation = few_shot(bank, queries, Neighbours((1,)), ALONE, shots=[3], tries=6)
    top1 = []
    for seed in range(6):
        order = torch.randperm(200, generator=torch.Generator().manual_seed(seed))
        drawn = torch.cat([order[bank_labels[order] == label][:3] for label in range(7)]).sort().values
        nearest = (F.normalize(query_values) @ F.normalize(bank_values[drawn]).T).argmax(1)
        top1.append((bank_labels[drawn][nearest] == query_labels).double().mean().item())
    assert mean.value == pytest.approx(np.mean(top1)) and len(set(top1)) > 1
    assert deviation.value == pytest.approx(np.std(top1, ddof=1))
    # Of what is found nothing is in these: `dino-ssl compare` lays rows of equal settings side by side.
    assert mean.settings == deviation.settings == {"shots": 3, "k": 1, "tries": 6}


def test_more_shots_than_images_name_the_smallest_class():
    with pytest.raises(UsageError, match="few_shot=4, but class 'dog' has 2 images; write --few-shot 2"):
        check_shots(torch.tensor([0, 0, 0, 1, 1]), ["cat", "dog"], [1, 4])


def test_what_is_not_asked_for_adapts_to_the_bank_and_what_is_asked_for_does_not():
    assert Neighbours().among(50_000) == (10, 20, 100, 200)
    assert Neighbours().among(150) == (10, 20, 100)
    assert Neighbours().note(150) == "k = 200 left out: the bank has 150 neighbours"
    assert Neighbours().among(6) == (6,)
    assert Neighbours((20, 5, 20)).among(150) == (5, 20)
    assert Neighbours((20, 5, 20)).note(150) == Neighbours().note(200) == ""
    with pytest.raises(UsageError) as caught:
        Neighbours((5, 151, 200)).among(150)
    assert caught.value.problems == (
        "k=151 is more than the 150 neighbours in the bank; write --k 20",
        "k=200 is more than the 150 neighbours in the bank; write --k 20",
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small network with the names of a released one, and images to classify."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save(build_backbone("vit_tiny", image_size=32, patch_size=16).state_dict(), folder / "tiny.pth")
    return folder / "tiny.pth"


def measured(weights, folder, *launcher, cache=()):
    command = [sys.executable, *launcher, "-m", "dino_ssl", "knn", "--weights", weights, "--arch", "vit_tiny"]
    command += ["--size", "32", "--train", "digits", "--output", folder / "knn.json", "--batch-size", "256", *cache]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("knn/1: ") == 1, "one rank has something to say"
    content = json.loads((folder / "knn.json").read_text())
    (evaluation,) = content["evaluations"]
    return [(m["metric"], m["settings"]["k"], m["value"]) for m in evaluation["measurements"]], evaluation["data"]


def test_two_processes_over_gloo_measure_what_one_does(weights, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = measured(weights, tmp_path / "one", cache=["--no-cache"])
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert measured(weights, tmp_path / "two", *ranks, cache=["--no-cache"]) == one
    assert measured(weights, tmp_path / "two", *ranks, cache=["--cache", tmp_path / "cache"]) == one
    assert one[1]["queries"]["num_images"] == 360
