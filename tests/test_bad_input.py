"""Bad input, through the real command: one clear message, the documented exit code, and nothing saved is lost.

Exit codes: 0 done, 1 failed, 2 usage (nothing was started), 3 diverged, 130 interrupted.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_ssl.cli import main
from dino_ssl.training.checkpoint import CheckpointStore
from dino_ssl.training.signals import ctrl_c_waits

# Twelve images of 20 pixels, three steps, a tenth of a second each.
SMALL = (
    "--device cpu --model.name vit_micro --model.patch-size 8 --crops.global-size 16 --crops.num-local-crops 1 "
    "--crops.local-size 8 --head.prototypes 16 --head.hidden-dim 16 --head.bottleneck-dim 8 --batch-size 4 "
    "--epochs 1 --optim.warmup-epochs 0 --optim.freeze-last-layer-epochs 0 --loader.num-workers 0"
)
HUGE_STEPS = "--optim.name sgd --optim.clip-grad 0"
Pretrain = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with `photos`."""
    monkeypatch.chdir(tmp_path)
    draw_images(tmp_path / "photos", 12)
    return tmp_path


def draw_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 20, 20, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:02d}.png")


@pytest.fixture
def pretrain(here: Path, capsys: pytest.CaptureFixture[str]) -> Pretrain:
    """Run the command on `photos` into `run`; exit code, the problems it names, and the line below them."""

    def run(words: str = "") -> tuple[int, list[str], str]:
        capsys.readouterr()
        code = main(f"pretrain --data photos --output-dir run {SMALL} {words}".split())
        lines = capsys.readouterr().err.splitlines()
        return code, [line.removeprefix("error: ") for line in lines if line.startswith("error: ")], (lines or [""])[-1]

    return run


def command(words: str, *, largest_file: int | None = None) -> list[str]:
    """The same in a process of its own, for which the kernel refuses files above `largest_file` bytes.

    It says EFBIG where a full disk says ENOSPC; nothing else is different.
    """
    limit = resource.RLIM_INFINITY if largest_file is None else largest_file
    program = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}));"
        "from dino_ssl.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    return [
        sys.executable, "-Bc", program, *f"pretrain --data photos --output-dir run {SMALL} {words}".split()
    ]  # fmt: skip


def saved(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "checkpoints").glob("checkpoint_*.pth")}


def newest_weights(run: Path) -> list[torch.Tensor]:
    found = CheckpointStore(run / "checkpoints", keep_last=9, keep_every=0).load_latest()
    assert found is not None
    return [value for value in found[0]["student"].values() if value.is_floating_point()]


# -- mistakes that are found before anything is started ------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "problem", "advice"),
    [
        # the data
        ("--data fotos", "data source 'fotos' does not exist", "did you mean {here}/photos?"),
        ("--data cifar1", "data source 'cifar1' does not exist", "did you mean cifar10?"),
        ("--data cifar10", "data source 'cifar10': found no {here}/data/cifar-10-", "set data_root to the folder"),
        ("--data cifar10:trian", "data source 'cifar10:trian': 'trian' is no split", "choose from train, val, test"),
        ("--data empty", "data source 'empty': no image among 0 files", "choose a folder that holds some"),
        ("--data texts", "data source 'texts': no image among 2 files", "choose a folder that holds some"),
        ("--data photos/00.png", "data source 'photos/00.png' is a file", "give a folder, or a list of images: .txt"),
        # the batch
        ("--batch-size 0", "batch_size=0 must be at least 1", "the default is 512"),
        ("--batch-size 13", "batch_size=13 is larger than the data set (12 images in photos)", "12 or less"),
        ("--head.batch-norm --batch-size 1", "batch_size=1 leaves nothing to normalise over", "at least 2"),
        ("--head.batch-norm --batch-size 7 --micro-batch-size 4", "batch_size=7 is split into", "of 2 or more"),
        ("--model.name timm/resnet10t --batch-size 1", "batch_size=1 is split into", "of 2 or more"),
        # the network and its crops
        ("--model.name vit_micr", "model.name=vit_micr is unknown", "did you mean vit_micro?"),
        ("--model.name timm/resnet10", "model.name=timm/resnet10 is unknown to timm", "timm/resnet10t"),
        ("--crops.global-size 30", "crops.global_size=30 does not divide into patches", "try 32"),
        ("--crops.local-size 12", "crops.local_size=12 does not divide into patches", "try 16"),
        (
            "--model.name timm/vit_tiny_patch16_224 --crops.global-size 30",
            "crops.global_size=30 does not go through model.name=timm/vit_tiny_patch16_224",
            "write a size that does",
        ),
        # the schedule
        ("--optim.warmup-epochs 5", "optim.warmup_epochs=5 is longer than the run of epochs=1", "at most 1"),
        (
            "--dino.warmup-teacher-temperature-epochs 2 --steps 4",
            "dino.warmup_teacher_temperature_epochs=2 is longer than the run of steps=4 (1.33 epochs)",
            "write at most 1.33",
        ),
        # the machine
        ("--device gpu", "invalid choice 'gpu' for argument '--device'", "Expected one of ('auto', 'cpu', 'cuda')"),
        ("--precision fp16", "precision=fp16 needs a GPU", "write --precision bf16 or --precision fp32"),
        # the output
        ("--output-dir in_the_way", "output_dir=in_the_way cannot be written (File exists)", "another folder"),
        ("--output-dir in_the_way/run", "output_dir=in_the_way/run cannot be written (Not a", "another folder"),
        ("--output-dir photos/run", "output_dir=photos/run lies in the folder of images", "a folder outside"),
    ],
)
def test_a_mistake_is_named_once_with_what_to_write_and_nothing_is_started(
    here: Path, pretrain: Pretrain, words: str, problem: str, advice: str
) -> None:
    (here / "empty").mkdir()
    (here / "texts").mkdir()
    for name in ("notes.txt", "table.csv"):
        (here / "texts" / name).write_text("no image")
    (here / "in_the_way").write_text("precious")
    before = sorted(here.rglob("*"))
    code, problems, hint = pretrain(words)
    assert (code, len(problems)) == (2, 1)
    assert problems[0].startswith(problem.format(here=here))
    assert advice.format(here=here) in problems[0]
    assert hint == "nothing was started; `dino-ssl pretrain --help` lists every knob"
    assert sorted(here.rglob("*")) == before
    assert (here / "in_the_way").read_text() == "precious"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_one_problem(pretrain: Pretrain) -> None:
    code, problems, _ = pretrain("--device cuda")
    assert (code, len(problems)) == (2, 1)
    assert problems[0].startswith("device=cuda, but PyTorch finds no GPU; write --device cpu")


@pytest.mark.parametrize("extra", ["tensorboard", "wandb"])
def test_an_extra_that_is_not_installed_is_named_with_its_command(pretrain: Pretrain, extra: str) -> None:
    if find_spec(extra):
        pytest.skip(f"{extra} is installed")
    advice = f"log.{extra}=true needs the package {extra}: pip install 'dino-ssl[{extra}]'"
    assert pretrain(f"--log.{extra}")[:2] == (2, [advice])


def test_five_mistakes_in_a_file_are_reported_at_once(here: Path, pretrain: Pretrain) -> None:
    text = "epoch: 3\nseed: one\noptim:\n  lrr: 5e-4\n  min_lr: -1\nknn: {every_epochs: 2.5}\n"
    (here / "recipe.yaml").write_text(text)
    code, problems, _ = pretrain("recipe.yaml")
    assert code == 2
    assert problems == [
        "recipe.yaml:1: unknown key 'epoch'; did you mean 'epochs'?",
        'recipe.yaml:2: seed="one" must be a whole number',
        "recipe.yaml:4: unknown key 'optim.lrr'; did you mean 'optim.lr'?",
        "recipe.yaml:6: knn.every_epochs=2.5 must be a whole number",
        "optim.min_lr=-1.0 must not be negative; the default is 1e-06",
    ]


def test_a_mistake_found_late_leaves_the_folder_free_for_the_corrected_command(pretrain: Pretrain) -> None:
    assert pretrain("--model.name vit_micr")[0] == 2
    assert pretrain()[0] == 0


# -- images that cannot be read ------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_a_folder_without_one_readable_image_is_refused_with_examples(here: Path, pretrain: Pretrain) -> None:
    for path in here.glob("photos/*.png"):
        truncate(path)
    code, problems, _ = pretrain()
    assert (code, len(problems)) == (2, 1)
    assert problems[0].startswith("data=photos: none of the 12 images tried could be read; write --data with a")
    assert "photos/00.png: damaged: image file is truncated; photos/01.png: " in problems[0]
    assert not (here / "run").exists()


def test_broken_images_among_good_ones_are_listed_and_the_run_goes_on(here: Path, pretrain: Pretrain) -> None:
    truncate(here / "photos/00.png")  # one that the picture of attention would show
    (here / "photos/07.png").write_text("not an image")
    assert pretrain("--loader.max-broken 0.2")[:2] == (0, [])
    listed = sorted((here / "run/broken_images.txt").read_text().splitlines())
    assert [line.split("\t")[0] for line in listed] == ["photos/00.png", "photos/07.png"]
    assert [line.split("\t")[1].split(":")[0] for line in listed] == [
        "damaged",
        "not an image, or its header is damaged (read are JPEG, PNG, BMP, WEBP, TIFF, GIF, PPM)",
    ]


def test_too_many_broken_images_stop_the_run_every_time_until_they_are_repaired(here: Path, pretrain: Pretrain) -> None:
    good = (here / "photos/00.png").read_bytes()
    truncate(here / "photos/00.png")
    for _ in range(2):
        code, problems, hint = pretrain()
        assert (code, len(problems)) == (1, 1)
        assert problems[0].startswith("1 of 12 images could not be read, more than the share loader.max_broken=0.01")
        assert "listed in run/broken_images.txt: repair them, or write a larger --loader.max-broken" in problems[0]
        assert hint == "what was saved before is untouched"
        assert (here / "run/broken_images.txt").read_text().startswith("photos/00.png\tdamaged")
    (here / "photos/00.png").write_bytes(good)
    assert pretrain()[0] == 0


# -- folders of other runs -----------------------------------------------------------------------------------


def test_another_configuration_in_the_folder_of_a_run_is_refused_and_named(here: Path, pretrain: Pretrain) -> None:
    assert pretrain()[0] == 0
    before = saved(here / "run")
    code, problems, _ = pretrain("--seed 3 --optim.lr 0.1 --log.every-steps 2")  # the last one is free to change
    assert (code, len(problems)) == (2, 1)
    assert problems[0].startswith("output_dir=run holds another run; write --output-dir for a new folder, or give")
    assert problems[0].endswith(": seed: 0 -> 3; optim.lr: 0.0005 -> 0.1")
    assert saved(here / "run") == before
    assert pretrain()[0] == 0


def test_a_checkpoint_of_another_architecture_is_named_and_kept(here: Path, pretrain: Pretrain) -> None:
    assert pretrain()[0] == 0
    (here / "run/config.yaml").unlink()
    before = saved(here / "run")
    code, problems, _ = pretrain("--head.prototypes 32")
    assert (code, len(problems)) == (1, 1)
    assert problems[0].startswith("run/checkpoints/checkpoint_000000003.pth holds another architecture (vit_micro)")
    assert "write --output-dir for a new folder, or the model and head that" in problems[0]
    assert saved(here / "run") == before
    assert pretrain()[0] == 0, "the folder still belongs to the old run"


def test_other_images_under_the_same_name_are_not_mixed_into_a_run(here: Path, pretrain: Pretrain) -> None:
    assert pretrain()[0] == 0
    shutil.copy(here / "photos/00.png", here / "photos/new.png")
    code, problems, _ = pretrain()
    assert (code, len(problems)) == (1, 1)
    assert problems[0].startswith("data=photos is not what run/checkpoints/checkpoint_000000003.pth was trained on")
    assert "(12 images then, 13 now, or other names); restore them, or write --output-dir" in problems[0]


# -- what goes wrong on the way ------------------------------------------------------------------------------


def test_a_full_disk_while_saving_is_one_message_and_the_run_resumes_once_there_is_room(
    here: Path, pretrain: Pretrain
) -> None:
    assert pretrain("--checkpoint.every-steps 1")[0] == 0
    final = saved(here / "run")
    kept = ("checkpoint_000000002.pth", "checkpoint_000000003.pth")
    assert sorted(final) == list(kept)
    for path in here.glob("run/checkpoints/checkpoint*3.pth*"):
        path.unlink()  # as if killed just before the last save
    done = subprocess.run(
        command("--checkpoint.every-steps 1", largest_file=100_000), capture_output=True, text=True, check=False
    )
    (problem,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1
    assert problem.startswith("error: cannot save run/checkpoints/checkpoint_000000003.pth: File too large")
    assert "make room there" in problem and "Traceback" not in done.stderr
    assert saved(here / "run") == {kept[0]: final[kept[0]]}
    assert pretrain("--checkpoint.every-steps 1")[0] == 0
    assert sorted(saved(here / "run")) == list(kept)


def test_a_disk_too_full_for_the_pictures_at_the_end_costs_no_checkpoint(here: Path, pretrain: Pretrain) -> None:
    assert pretrain()[0] == 0
    final = saved(here / "run")
    done = subprocess.run(command("", largest_file=8_000), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: cannot use run: File too large; make room or mend that path" in done.stderr
    assert saved(here / "run") == final


def test_a_loss_that_is_not_a_number_stops_the_run_and_saves_nothing_of_it(here: Path, pretrain: Pretrain) -> None:
    code, problems, hint = pretrain(f"{HUGE_STEPS} --optim.lr 1e30 --epochs 2")
    assert (code, len(problems)) == (3, 1)
    assert problems[0].startswith("the loss is nan at step 3; start anew in another --output-dir with a lower --optim")
    assert hint == "what was saved before is untouched"
    assert not (here / "run/checkpoints").exists()


def test_weights_that_the_last_step_ruined_are_not_saved_and_the_good_ones_before_are_kept(
    here: Path, pretrain: Pretrain
) -> None:
    # The warm-up begins at 0, so that only the first step is harmless.
    words = f"{HUGE_STEPS} --optim.lr 1e36 --optim.warmup-epochs 1 --checkpoint.every-steps 1"
    code, problems, _ = pretrain(words)
    assert (code, len(problems)) == (3, 1)
    assert problems[0].startswith("the weights are no longer finite at step 2; start anew in another --output-dir")
    assert list(saved(here / "run")) == ["checkpoint_000000001.pth"]
    assert all(weight.isfinite().all() for weight in newest_weights(here / "run"))


def test_ctrl_c_exits_130_and_says_how_to_go_on(here: Path) -> None:
    words = "--steps 100000 --checkpoint.every-steps 50000 --log.every-steps 1"
    # A job in the background of a script inherits a SIGINT that is ignored.
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    with subprocess.Popen(command(words), stderr=subprocess.PIPE, text=True, **listening) as process:
        assert process.stderr is not None
        assert any(line.startswith("step 1/100000 ") for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.splitlines()[-2:] == ["error: interrupted", "the same command goes on from what was saved"]
    assert "Traceback" not in rest


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """A job in the background of a script inherits a SIGINT that is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_end_of_a_save_and_a_second_one_does_not(ctrl_c_raises: None) -> None:
    reached = []
    with pytest.raises(KeyboardInterrupt), ctrl_c_waits():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("end")
    with pytest.raises(KeyboardInterrupt), ctrl_c_waits():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("never")
    assert reached == ["end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
