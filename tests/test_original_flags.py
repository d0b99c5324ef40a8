"""The flags of main_dino.py, each against the knob that it stands for."""

from pathlib import Path

import pytest

from dino_ssl.config import Crops, Dino, Head, Loader, Model, Optim, PretrainConfig
from dino_ssl.config_flags import configure
from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.config_schema import flatten
from dino_ssl.original_flags import REPLACEMENTS, WITHOUT_EFFECT


def changed_knobs(*words: str) -> dict[str, object]:
    """The knobs that the words move away from their defaults."""
    before, after = (
        flatten(PretrainConfig(data="photos")),
        flatten(configure(["--data", "photos", *words], PRETRAIN)[0]),
    )
    return {knob: after[knob] for knob in PRETRAIN.knobs if before[knob] != after[knob]}


ORIGINAL = {
    "--arch vit_tiny": {"model.name": "vit_tiny"},
    "--arch deit_tiny": {"model.name": "vit_tiny"},
    "--arch resnet50": {"model.name": "resnet50"},
    "--patch_size 8": {"model.patch_size": 8},
    "--out_dim 1024": {"head.prototypes": 1024},
    "--norm_last_layer false": {"head.norm_last_layer": False},
    "--momentum_teacher 0.9995": {"dino.momentum": 0.9995},
    "--use_bn_in_head true": {"head.batch_norm": True},
    "--use_bn_in_head 0": {},
    "--warmup_teacher_temp 0.02": {"dino.warmup_teacher_temperature": 0.02},
    "--teacher_temp 0.07": {"dino.teacher_temperature": 0.07},
    "--warmup_teacher_temp_epochs 30": {"dino.warmup_teacher_temperature_epochs": 30.0},
    "--use_fp16 true": {"precision": "fp16"},
    "--use_fp16 False": {"precision": "fp32"},
    "--weight_decay 0.05": {"optim.weight_decay": 0.05},
    "--weight_decay_end 0.5": {"optim.weight_decay_end": 0.5},
    "--clip_grad 0": {"optim.clip_grad": 0.0},
    "--batch_size_per_gpu 64": {"batch_size": 64},
    "--epochs 300": {"epochs": 300},
    "--freeze_last_layer 3": {"optim.freeze_last_layer_epochs": 3.0},
    "--lr 0.001": {"optim.lr": 0.001},
    "--warmup_epochs 5": {"optim.warmup_epochs": 5.0},
    "--min_lr 1e-5": {"optim.min_lr": 1e-5},
    "--optimizer lars": {"optim.name": "lars"},
    "--drop_path_rate 0.2": {"model.drop_path": 0.2},
    "--global_crops_scale 0.25 1.": {"crops.global_scale": (0.25, 1.0)},
    "--local_crops_number 10": {"crops.num_local_crops": 10},
    "--local_crops_scale 0.05 0.25": {"crops.local_scale": (0.05, 0.25)},
    "--data_path /imagenet/train": {"data": "/imagenet/train"},
    "--output_dir /runs/a": {"output_dir": Path("/runs/a")},
    "--saveckp_freq 20": {"checkpoint.keep_every": 20},
    "--seed 3": {"seed": 3},
    "--num_workers 4": {"loader.num_workers": 4},
    "--dist_url env://": {},
    "--local_rank 1": {},
    "--local-rank=1": {},
}


@pytest.mark.parametrize("flag", ORIGINAL)
def test_a_flag_of_the_original_sets_our_knob(flag):
    assert changed_knobs(*flag.split()) == ORIGINAL[flag]


def test_every_replacement_is_tested_and_leads_to_a_knob():
    tested = {flag.split()[0].lstrip("-") for flag in ORIGINAL}
    assert {*REPLACEMENTS, *WITHOUT_EFFECT} <= tested
    assert {replacement.knob for replacement in REPLACEMENTS.values()} <= set(PRETRAIN.knobs)


def test_the_global_batch_is_the_originals_batch_per_gpu_times_the_launched_ranks(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert changed_knobs("--batch_size_per_gpu", "32") == {"batch_size": 256}


def test_flags_without_effect_leave_one_note_each():
    _, notes = configure(["--data", "photos", "--dist_url", "tcp://a:1", "--local_rank=3"], PRETRAIN)
    assert [note.split()[0] for note in notes] == ["--dist_url", "--local_rank"]


def test_a_documented_command_of_the_original_means_the_same_run(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    command = (
        "--arch vit_small --optimizer sgd --lr 0.03 --weight_decay 1e-4 --weight_decay_end 1e-4 "
        "--global_crops_scale 0.14 1 --local_crops_number 6 --local_crops_scale 0.05 0.14 "
        "--use_bn_in_head true --out_dim 60000 --momentum_teacher 0.9995 --batch_size_per_gpu 64 "
        "--num_workers 10 --data_path /imagenet"
    )
    assert configure(command.split(), PRETRAIN)[0] == PretrainConfig(
        data="/imagenet",
        batch_size=512,
        crops=Crops(global_scale=(0.14, 1.0), num_local_crops=6, local_scale=(0.05, 0.14)),
        model=Model(name="vit_small"),
        head=Head(prototypes=60000, batch_norm=True),
        dino=Dino(momentum=0.9995),
        optim=Optim(name="sgd", lr=0.03, weight_decay=1e-4, weight_decay_end=1e-4),
        loader=Loader(num_workers=10),
    )
