"""Knobs against their ranges and against each other."""

from dataclasses import replace

import pytest

from dino_ssl.config import Crops, PretrainConfig
from dino_ssl.config_checks import OF_EVERY_RUN, RANGES, check, check_schedule
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.config_schema import flatten

SOUND = PretrainConfig(data="photos")


def changed(**sections) -> PretrainConfig:
    """`SOUND` with knobs of sections changed: `changed(optim={"lr": 0.0})`."""
    parts = {
        name: replace(getattr(SOUND, name), **value) if isinstance(value, dict) else value
        for name, value in sections.items()
    }
    return replace(SOUND, **parts)


def test_every_number_has_a_range():
    ranged = " ".join(limit.knobs for limit in (*OF_EVERY_RUN, *RANGES)).split()
    numbers = [knob for knob, value in flatten(PretrainConfig()).items() if is_number(value)]
    assert sorted(ranged) == sorted({*numbers, "steps", "micro_batch_size", *OPTIONAL_COUNTS})


OPTIONAL_COUNTS = ("checkpoint.every_steps", "loader.num_workers", "loader.num_processes")


def is_number(value: object) -> bool:
    first = value[0] if isinstance(value, tuple) else value
    return isinstance(first, int | float) and not isinstance(first, bool)


@pytest.mark.parametrize(
    ("config", "start"),
    [
        (
            changed(evaluate={"every_epochs": 5}),
            "evaluate.every_epochs=5 needs evaluate.submit; write --evaluate.submit 'sbatch --gpus 1', or",
        ),
        (
            changed(evaluate={"every_epochs": 5, "submit": "bash", "methods": ()}),
            "evaluate.methods=[] leaves nothing to run; write [knn]",
        ),
        (
            changed(parallel={"sharding": "fsdp2"}, model={"name": "resnet50"}),
            "parallel.sharding=fsdp2 splits the blocks of vit_*, not model.name=resnet50; write --parallel",
        ),
        (
            changed(parallel={"sharding": "fsdp2"}, head={"batch_norm": True}),
            "parallel.sharding=fsdp2 does not go with head.batch_norm=true",
        ),
        (
            changed(parallel={"sharding": "fsdp2"}, optim={"name": "lars"}),
            "parallel.sharding=fsdp2 does not go with optim.name=lars, which needs the norms of whole weights",
        ),
        (
            changed(parallel={"sharding": "fsdp2"}, precision="fp16"),
            "parallel.sharding=fsdp2 does not go with precision=fp16",
        ),
        (
            changed(parallel={"sharding": "fsdp2"}, model={"compile": True}),
            "parallel.sharding=fsdp2 was not tried with model.compile=true",
        ),
        (
            changed(parallel={"sharding": "fsdp2", "bucket_mb": 50.0}),
            "parallel.sharding=fsdp2 sends block by block and has no parallel.bucket_mb=50; leave it out",
        ),
        (changed(parallel={"bucket_mb": 0.0}), "parallel.bucket_mb=0.0 must be above 0"),
        (
            changed(epochs=0),
            "epochs=0 must be at",
        ),
        (changed(steps=0), "steps=0 must be at least 1"),
        (changed(batch_size=0), "batch_size=0 must be at least 1; the default is 512"),
        (changed(micro_batch_size=-1), "micro_batch_size=-1 must be at least 1; the default is null"),
        (changed(seed=-1), "seed=-1 must fit into 32 bits"),
        (changed(crops={"flip": 1.5}), "crops.flip=1.5 must lie between 0 and 1; the default is 0.5"),
        (changed(crops={"flip": float("nan")}), "crops.flip=NaN must lie between 0 and 1"),
        (changed(crops={"global_scale": (0.5, 0.4)}), "crops.global_scale=[0.5, 0.4] must be two shares"),
        (changed(crops={"local_scale": (0.0, 0.4)}), "crops.local_scale=[0.0, 0.4] must be two shares"),
        (changed(crops={"std": (0.2, 0.0, 0.2)}), "crops.std=[0.2, 0.0, 0.2] must be numbers above 0"),
        (changed(crops={"mean": (0.5,)}), "crops.mean=[0.5] must be one number for each channel, crops.channels=3"),
        (changed(crops={"blur": (0.1, 2.0, 0.5)}), "crops.blur=[0.1, 2.0, 0.5] must be numbers between 0 and 1"),
        (changed(crops={"num_local_crops": -1}), "crops.num_local_crops=-1 must not be negative"),
        (changed(model={"drop_path": 1.0}), "model.drop_path=1.0 must be at least 0 and below 1"),
        (changed(dino={"teacher_temperature": 0.0}), "dino.teacher_temperature=0.0 must be above 0"),
        (changed(dino={"momentum": 1.01}), "dino.momentum=1.01 must lie between 0 and 1"),
        (changed(optim={"lr": float("inf")}), "optim.lr=Infinity must be above 0"),
        (changed(knn={"k": 0}), "knn.k=0 must be at least 1; the default is 20"),
        (changed(checkpoint={"keep_last": 0}), "checkpoint.keep_last=0 must be at least 1"),
        (changed(data=" "), "data is not set; write --data FOLDER, or --preset digits"),
        (
            changed(crops={"global_size": 225}),
            "crops.global_size=225 does not divide into patches of model.pat",
        ),
        (changed(crops={"local_size": 5}), "crops.local_size=5 does not divide"),
        (
            changed(batch_size=1, head={"batch_norm": True}),
            "batch_size=1 leaves nothing to normalise over (head",
        ),
        (
            changed(micro_batch_size=1, model={"name": "resnet50"}),
            "micro_batch_size=1 leaves nothing to normal",
        ),
        (changed(optim={"min_lr": 0.1}), "optim.min_lr=0.1 must not be above optim.lr=0.0005"),
        (changed(knn={"max_images": 10}), "knn.k=20 asks for more neighbours than knn.max_images=10"),
        (
            changed(epochs=5),
            "optim.warmup_epochs=10 is longer than the run of epochs=5; write at most 5",
        ),
        (
            changed(dino={"warmup_teacher_temperature_epochs": 101.0}),
            "dino.warmup_teacher_temperature_epochs=101 is longer than the run of epochs=100; write at most",
        ),
    ],
)
def test_a_value_that_makes_no_sense_is_the_one_problem(config, start):
    (only,) = check(config)
    assert only.startswith(start)


def test_each_problem_begins_with_a_knob():
    config = changed(epochs=2, seed=-1, batch_size=1, crops={"global_size": 10, "flip": 7.0}, head={"batch_norm": True})
    found = check(config)
    assert len(found) == 5
    assert {line.partition("=")[0] for line in found} <= set(PRETRAIN.knobs)


def test_crops_divide_only_where_there_are_patches():
    odd = Crops(global_size=33, local_size=17)
    assert check(changed(crops=odd, model={"name": "resnet18"})) == []
    assert len(check(changed(crops=odd))) == 2
    assert len(check(changed(crops=replace(odd, num_local_crops=0)))) == 1


@pytest.mark.parametrize(("size", "near"), [(90, 96), (5, 16), (100, 96), (105, 112)])
def test_the_nearest_crop_size_is_suggested(size, near):
    (only,) = check(changed(crops={"local_size": size}))
    assert only.endswith(f"try {near}")
    assert check(changed(crops={"local_size": near})) == []


def test_a_run_in_steps_is_compared_with_its_warm_up_once_the_data_is_known():
    config = changed(steps=95)
    assert check(config) == []
    assert check_schedule(config, steps_per_epoch=9) == []
    assert check_schedule(config, steps_per_epoch=10) == [
        "optim.warmup_epochs=10 is longer than the run of steps=95 (9.5 epochs); write at most 9.5"
    ]
    assert check_schedule(SOUND, steps_per_epoch=1) == []


def test_every_default_but_the_missing_data_is_sound():
    assert check(SOUND) == []
    assert check(PretrainConfig()) == [
        "data is not set; write --data FOLDER, or --preset digits to try it without data of your own"
    ]


@pytest.mark.parametrize(
    ("config", "start"),
    [
        (changed(crops={"global_size": 80_000}), "crops.global_size=80000 must be at most 8192 pixels"),
        (changed(head={"prototypes": 10**13}), "head.prototypes=10000000000000 must be at most a million"),
        (changed(head={"hidden_dim": 10**30}), f"head.hidden_dim={10**30} must be at most 65536"),
        (changed(crops={"num_local_crops": 10**9}), "crops.num_local_crops=1000000000 must be at most 1000"),
    ],
)
def test_a_number_that_would_fill_the_memory_is_told_first(config: PretrainConfig, start: str) -> None:
    assert any(problem.startswith(start) for problem in check(config))


@pytest.mark.parametrize(("length", "knob"), [({"steps": 10**9}, "steps"), ({"epochs": 10**8}, "epochs")])
def test_a_run_of_more_steps_than_schedules_can_hold_is_refused(length: dict[str, int], knob: str) -> None:
    (problem,) = check_schedule(replace(SOUND, **length), steps_per_epoch=10)
    assert problem == f"{knob}={length[knob]} is a run of 1,000,000,000 steps; the most is 100,000,000"
