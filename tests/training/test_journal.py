"""The journal: exact means, files that a resume leaves as if nothing had happened, a display that fits."""

import json
import math
import random
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_ssl.errors import RunError, UsageError
from dino_ssl.training.checkpoint import check_plain
from dino_ssl.training.curves import curve
from dino_ssl.training.journal import Journal, read_metrics
from dino_ssl.training.progress import Progress, Speed, Stopwatch, format_duration, status
from dino_ssl.training.trackers import missing_extras

STEPS, STEPS_PER_EPOCH, EVERY = 47, 11, 4
LOSSES = [8 - step / 10 + 0.3 * math.sin(5 * step) for step in range(1, STEPS + 1)]


def a_journal(folder: Path, **options: Any) -> Journal:
    defaults = {
        "every_steps": EVERY,
        "total_steps": STEPS,
        "images_per_step": 64,
        "is_main": True,
        "bar": False,
    }
    return Journal(folder, **{**defaults, **options})


class KilledError(Exception):
    pass


def train(
    folder: Path, checkpoint: dict[str, Any] | None, *, save_every: int = 7, kill_at: int | None = None
) -> dict[str, Any] | None:
    """Run from `checkpoint` to the end or to a kill between two steps; the last checkpoint."""
    journal, step = a_journal(folder), 0
    if checkpoint is not None:
        step = checkpoint["step"]
        journal.load_state_dict(checkpoint["journal"])
        journal.resume_at(step, step // STEPS_PER_EPOCH)
    try:
        with journal:
            while step < STEPS:
                if step == kill_at:
                    raise KilledError
                step += 1
                one_step(journal, step)
                if step % save_every == 0:
                    checkpoint = {"step": step, "journal": journal.state_dict()}
    except KilledError:
        pass
    return checkpoint


def one_step(journal: Journal, step: int) -> None:
    with journal.waiting():
        loss = torch.tensor(LOSSES[step - 1])
    journal.add(loss)
    epoch, begun = divmod(step, STEPS_PER_EPOCH)
    if journal.is_due(step):
        journal.log(step, step / STEPS_PER_EPOCH, {"train/lr": 1e-3 * step, "diag/entropy": loss / 2})
    if begun == 0:
        if epoch % 2 == 0:
            journal.scored(step, epoch, epoch / 10)
        journal.end_epoch(step, epoch, lr=1e-3 * step, weight_decay=0.04)


def without_times(folder: Path) -> list[dict[str, Any]]:
    timed = ("time", "speed/images_per_second", "speed/data_wait")
    return [{k: v for k, v in record.items() if k not in timed} for record in read_metrics(folder)]


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def test_each_line_has_the_mean_loss_since_the_line_before_and_the_last_step_is_never_lost(
    tmp_path: Path,
) -> None:
    train(tmp_path, None)
    lines = [line for line in without_times(tmp_path) if "train/loss" in line]
    assert [line["step"] for line in lines] == [*range(EVERY, STEPS, EVERY), STEPS]
    before = 0
    for line in lines:
        losses = LOSSES[before : line["step"]]
        assert line["train/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)
        assert line["epoch"] == line["step"] / STEPS_PER_EPOCH
        assert line["train/lr"] == 1e-3 * line["step"]
        assert line["diag/entropy"] == pytest.approx(losses[-1] / 2, rel=1e-6)
        before = line["step"]


def test_log_txt_has_the_shape_of_the_original_and_the_mean_over_the_epoch(tmp_path: Path) -> None:
    train(tmp_path, None)
    for epoch, record in enumerate(read_epochs(tmp_path)):
        losses = LOSSES[epoch * STEPS_PER_EPOCH :][:STEPS_PER_EPOCH]
        expected = {
            "train_loss": pytest.approx(sum(losses) / len(losses), rel=1e-6),
            "train_lr": 1e-3 * STEPS_PER_EPOCH * (epoch + 1),
            "train_wd": 0.04,
            "epoch": epoch,
        }
        if epoch % 2 == 1:
            expected["knn_top1"] = (epoch + 1) / 10
        assert record == expected and list(record) == list(expected)


@pytest.mark.parametrize("seed", range(10))
def test_kills_and_resumes_leave_the_files_of_an_undisturbed_run(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    save_every = dice.randint(3, 12)
    train(tmp_path / "whole", None)
    checkpoint = None
    for _ in range(4):
        checkpoint = train(tmp_path / "killed", checkpoint, save_every=save_every, kill_at=dice.randrange(STEPS))
        for name in ("metrics.jsonl", "log.txt"):
            with (tmp_path / "killed" / name).open("a") as file:
                file.write(dice.choice(['{"step": 99999, "tr', "", '{"step": 4', "\x00\x00"]))
        check_plain(checkpoint or {})
    train(tmp_path / "killed", checkpoint, save_every=save_every)
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")
    assert (tmp_path / "killed/log.txt").read_bytes() == (tmp_path / "whole/log.txt").read_bytes()


def test_a_run_killed_before_its_first_checkpoint_starts_its_files_anew(tmp_path: Path) -> None:
    train(tmp_path, None, save_every=100, kill_at=30)
    train(tmp_path, None)
    assert len(read_epochs(tmp_path)) == STEPS // STEPS_PER_EPOCH
    steps = [line["step"] for line in read_metrics(tmp_path) if "train/loss" in line]
    assert len(steps) == len(set(steps))


def test_numbers_that_are_not_finite_are_null_and_the_file_stays_json(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal:
        journal.add(torch.tensor(float("nan")))
        assert math.isnan(journal.log(1, 0.1, {"train/lr": float("inf"), "train/x": torch.tensor(-torch.inf)}))
    text = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [record[name] for name in ("train/loss", "train/lr", "train/x")] == [None, None, None]


def test_adding_a_loss_never_waits_for_the_device(tmp_path: Path) -> None:
    with a_journal(tmp_path) as journal:
        for _ in range(3):
            journal.add(torch.zeros((), device="meta"))  # has no value: reading it is an error
        with pytest.raises((RuntimeError, NotImplementedError)):
            journal.log(4, 1, {})


def test_a_long_sum_of_small_losses_keeps_the_accuracy_of_float64(tmp_path: Path) -> None:
    with a_journal(tmp_path, every_steps=20_000, total_steps=20_000) as journal:
        for _ in range(20_000):
            journal.add(torch.tensor(11.09, dtype=torch.float32))
        assert journal.log(20_000, 1, {}) == pytest.approx(float(torch.tensor(11.09)), rel=1e-12)


def test_other_ranks_get_the_loss_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with a_journal(tmp_path / "run", is_main=False, bar=True) as journal:
        journal.resume_at(0, 0)
        journal.add(torch.tensor(2.0))
        journal.scored(1, 1, 0.5)
        assert journal.log(1, 1, {}) == 2.0
        journal.end_epoch(1, 1, lr=0.1, weight_decay=0.0)
        journal.state_dict()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == ""


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl: Is a directory"), a_journal(tmp_path) as journal:
        journal.add(torch.tensor(1.0))
        journal.log(1, 0.1, {})


def test_speed_is_images_and_waiting_over_wall_time_without_the_first_step_and_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    stopwatch = Stopwatch(images_per_step=100)
    with stopwatch.waiting():
        now += 50  # workers start
    stopwatch.step()
    assert stopwatch.look() is None and stopwatch.seconds_for(10) is None
    for _ in range(4):
        with stopwatch.waiting():
            now += 0.5
        now += 1.5
        stopwatch.step()
    with stopwatch.paused():
        now += 1000
    assert stopwatch.look() == Speed(images_per_second=50.0, data_wait=0.25)
    assert stopwatch.look() is None
    assert stopwatch.seconds_for(10) == 20.0


def test_a_loader_that_ends_while_waited_for_ends_as_itself() -> None:
    with pytest.raises(StopIteration), Stopwatch(1).waiting():
        next(iter(()))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "00:00"), (65.0, "01:05"), (3599.6, "1:00:00"), (7384.0, "2:03:04"), (86400 * 12.13, "12d03h")],
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("total", "step"), [(1_680, 420), (1_000_000, 999_990), (10, 0)])
def test_the_bar_fits_80_columns_and_loses_no_number(capsys: pytest.CaptureFixture[str], total: int, step: int) -> None:
    progress = Progress(start_step=step, total_steps=total, bar=True)
    text = status(speed=Speed(123456.7, 1.0), seconds_left=86399.0, loss=11.09, score="kNN 100.0%")
    progress.show(step, 1.0, text, important=True)
    progress.close()
    frames = [frame for line in capsys.readouterr().err.split("\n") for frame in line.split("\r")]
    assert max(len(frame) for frame in frames) <= 80
    for part in (f"{step}/{total}", "123457 img/s", "wait 100%", "ETA 23:59:59", "loss 11.09", "kNN 100.0%"):
        assert part in frames[-2]


def test_without_a_terminal_a_fast_run_writes_its_first_lines_each_knn_and_its_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, None)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["4/47", "22/47", "44/47", "47/47"]
    assert "kNN 20.0%" in lines[1] and "img/s" in lines[-1] and "loss" in lines[-1]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_an_extra_that_is_not_installed_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # Python's own way to say: not installed
    with pytest.raises(UsageError, match=rf"log\.{name}=true .*pip install 'dino-ssl\[{name}\]'"):
        a_journal(tmp_path, **{name: True})
    assert missing_extras(tensorboard=False, wandb=False) == []


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the extra tensorboard")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    for start, end in ((0, 8), (4, 12)):
        journal = a_journal(tmp_path, tensorboard=True)
        journal.resume_at(start, 0)
        with journal:
            for step in range(start + 1, end + 1):
                one_step(journal, step)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/lr")] == [4, 8, 12]
    assert [event.value for event in events.Scalars("train/lr")] == pytest.approx([0.004, 0.008, 0.012])


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the extra wandb")
def test_wandb_continues_the_run_whose_id_lies_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for _ in range(2):
        with a_journal(tmp_path, wandb=True) as journal:
            one_step(journal, 1)
        ids.append((tmp_path / "wandb_id.txt").read_text())
    assert ids[0] == ids[1]
    runs = list((tmp_path / "wandb").glob(f"offline-run-*-{ids[0].strip()}"))
    assert len(runs) >= 1


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def test_the_curve_is_a_picture_1000_pixels_wide_with_a_panel_for_knn_where_it_was_measured(
    tmp_path: Path,
) -> None:
    train(tmp_path, None)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 48, "epoch": 4.4, "train/loss": null}\n{"step": 4')
    path = curve(tmp_path, prototypes=1024)
    assert path == tmp_path / "curve.png"
    assert png_size(path) == (1000, 900)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.1, "train/loss": 7.0, "train/lr": 0.1}\n')
    assert png_size(curve(tmp_path)) == (1000, 600)


def test_a_curve_of_a_run_without_metrics_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"metrics\.jsonl: No such file"):
        curve(tmp_path)
