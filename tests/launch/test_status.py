"""What `status` says of a run, from its files alone."""

import time

import pytest
from made_runs import a_line, add_job, start, stop, without_slurm, write_heartbeat, write_lines, write_traceback

from dino_ssl.training.progress import format_duration
from launch.queue import Queued, seconds_of
from launch.run_files import heartbeat, runs_in
from launch.run_state import look, pace_of, state_in_queue
from launch.slurm import main
from launch.status_text import status, table

NOW = time.time()


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch, tmp_path):
    without_slurm(monkeypatch, tmp_path)


@pytest.fixture
def run(tmp_path):
    """Half done: 10 seconds a step, a restart in the middle that cost a minute and two steps taken again."""
    folder = tmp_path / "run"
    lines = [a_line(step, NOW - 1000 + 10 * step) for step in range(1, 31)]
    # Steps 31 and 32 had been logged and were dropped on resuming at step 30.
    lines += [a_line(step, NOW - 1000 + 10 * step + 80) for step in range(31, 51)]
    lines[19]["eval/knn_top1"], lines[39]["eval/knn_top1"] = 0.5, 0.45
    write_lines(folder / "metrics.jsonl", lines)
    write_lines(
        folder / "restarts.jsonl",
        [start(NOW - 1000, 0), stop(NOW - 675, 32, "requeued", code=75, text="USR2"), start(NOW - 640, 30)],
    )
    write_heartbeat(folder)
    add_job(folder)
    return folder


def test_the_pace_counts_what_restarts_cost(run):
    metrics = runs_in(run) and look([run])[0][0]
    # 48 steps of 10 s in two stretches; the gap of 90 s holds one step, and 80 s of waiting and repeating.
    assert metrics.outage == pytest.approx(80)
    assert metrics.eta == pytest.approx(50 * 10 * (1 + 80 / (290 + 190)))


@pytest.mark.parametrize("reason", ["failed", "interrupted", "diverged", "done"])
def test_time_that_a_person_took_is_no_cost_of_restarts(reason):
    lines = [a_line(1, 10), a_line(2, 20), a_line(3, 9000), a_line(4, 9010)]
    pace = pace_of(lines, [start(0, 0), stop(25, 2, reason), start(8990, 2)])
    assert (pace.seconds_per_step, pace.slowdown, pace.outage) == (10, 1, None)


def test_a_kill_costs_time_too():
    pace = pace_of([a_line(1, 10), a_line(2, 20), a_line(3, 90), a_line(4, 100)], [start(0, 0), start(60, 2)])
    assert (pace.seconds_per_step, pace.outage) == (10, 60)


def test_without_two_lines_there_is_no_pace():
    assert pace_of([a_line(1, 10)], [start(0, 0)]) is None
    assert pace_of([], []) is None


def test_a_run_is_shown_on_a_screen(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    lines = dict(line.split(maxsplit=1) for line in status([run], is_detailed=True).splitlines() if line[0] != " ")
    assert lines["run"] == "run"
    assert lines["state"] == "running: on n1"
    assert lines["step"] == "50/100 (50.0%), epoch 5.00"
    assert lines["loss"] == "3.5000"
    assert lines["k-NN"] == "45.0% (best 50.0%)"
    assert lines["speed"] == "1,000 images/s"
    assert (
        lines["ETA"] == f"{format_duration(500 * (1 + 80 / 480))} of running, counting 01:20 for each restart as so far"
    )
    assert lines["job"] == "7 (2 nodes, 4 ranks), log run/logs/7_0_log.out"
    assert "step 0: started, 2 nodes, 4 ranks, job 7" in lines["history"]
    assert "step 32: requeued (exit code 75): USR2" in status([run], is_detailed=True)


@pytest.mark.parametrize(
    ("events", "age", "state"),
    [
        ([start(NOW - 100, 0)], 1, "running"),
        ([start(NOW - 100, 0)], 600, "lost"),
        ([start(NOW - 100, 0), stop(NOW, 9, "done")], 600, "done"),
        ([start(NOW - 100, 0), stop(NOW, 9, "failed")], 600, "failed"),
        ([start(NOW - 100, 0), stop(NOW, 9, "requeued")], 600, "requeued"),
        ([], None, "queued"),
    ],
)
def test_the_state_is_read_from_the_files(tmp_path, events, age, state):
    folder = tmp_path / "run"
    add_job(folder)
    if events:
        write_lines(folder / "restarts.jsonl", events)
    if age is not None:
        write_heartbeat(folder, age=age, state="stopped" if events[-1]["event"] == "stop" else "training")
    assert look([folder])[0][0].state == state


@pytest.mark.parametrize(
    ("queued", "age", "changes", "state"),
    [
        (Queued("PENDING", "(Priority)", "1:00:00", 0), None, {}, "queued"),
        (Queued("PENDING", "(BeginTime)", "1:00:00", 0), 9, {"state": "stopped"}, "requeued"),
        (Queued("RUNNING", "n1", "50:00", 600), 1, {}, "running"),
        (Queued("RUNNING", "n1", "50:00", 600), 1, {"state": "reporting"}, "reporting"),
        (Queued("RUNNING", "n1", "50:00", 600), 300, {}, "silent"),
        (Queued("RUNNING", "n1", "50:00", 10), 300, {}, "starting"),
        (Queued("RUNNING", "n1", "50:00", 10), 1, {"job": "6"}, "starting"),
        (Queued("RUNNING", "n1", "50:00", 600), 1, {"state": "stopped"}, "ending"),
        (Queued("COMPLETING", "n1", "0:00", 600), 1, {}, "completing"),
    ],
)
def test_slurm_and_the_heartbeat_together_tell_the_state(tmp_path, queued, age, changes, state):
    if age is not None:
        write_heartbeat(tmp_path, age=age, **changes)
    assert state_in_queue(queued, heartbeat(tmp_path), "7")[0] == state


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:05", 5), ("12:34", 754), ("1:00:01", 3601), ("2-01:00:00", 176400), ("INVALID", 0)]
)
def test_squeues_times_are_seconds(text, seconds):
    assert seconds_of(text) == seconds


def test_the_traceback_is_that_of_the_rank_which_failed_first_in_the_newest_start(tmp_path):
    folder = tmp_path / "run"
    add_job(folder)
    write_lines(folder / "restarts.jsonl", [start(NOW - 5, 0), stop(NOW, 9, "failed", code=1, text="rank failed")])
    write_heartbeat(folder, state="stopped")
    write_traceback(folder, 3, "2026-01-01T10:00:00+0000", "OldError: of an earlier start")
    write_traceback(folder, 3, "2026-01-01T12:00:01+0000", "ValueError: the cause")
    write_traceback(folder, 0, "2026-01-01T12:00:03+0000", "RuntimeError: Connection closed by peer")
    text = status([folder], is_detailed=True)
    assert "rank 3 failed:" in text and "ValueError: the cause" in text and "Traceback" in text
    assert "OldError" not in text and "Connection closed" not in text


def test_without_a_traceback_the_end_of_the_log_is_shown(tmp_path):
    folder = tmp_path / "run"
    add_job(folder)
    write_lines(folder / "restarts.jsonl", [start(NOW - 5, 0), stop(NOW, 9, "failed", code=1, text="disk")])
    (folder / "logs").mkdir()
    (folder / "logs/7_0_log.out").write_text("step 1\nerror: the disk is full\n")
    assert status([folder], is_detailed=True).endswith("  error: the disk is full")


def test_many_runs_are_a_table_with_a_line_for_each_bad_end(run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    bad = run.parent / "z"
    write_lines(bad / "restarts.jsonl", [start(NOW - 5, 0), stop(NOW, 9, "diverged", code=3, text="the loss is nan")])
    write_lines(bad / "metrics.jsonl", [a_line(9, NOW)])
    assert main(["status", str(run.parent)]) == 0
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert first.split() == ["run", "state", "step", "epoch", "loss", "k-NN", "images/s", "ETA", "restarts"]
    assert rows[0].split() == ["run", "running", "50/100", "5.00", "3.500", "45.0%", "1,000", "09:43", "1"]
    assert rows[1].split() == ["z", "diverged", "9", "0.90", "3.910", "-", "1,000", "-", "0"]
    assert rows[2] == "z: the loss is nan"


def test_the_runs_of_a_folder_are_found_those_of_sweeps_too(tmp_path):
    for name in ("b", "sweep/001", "sweep/000", "b/not", "empty/deep/er"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    for name in ("b", "sweep/001", "sweep/000", "b/not", "empty/deep/er"):
        add_job(tmp_path / "runs" / name)
    found = [str(run.relative_to(tmp_path / "runs")) for run in runs_in(tmp_path / "runs")]
    assert found == ["b", "sweep/000", "sweep/001"]
    assert runs_in(tmp_path / "runs/b") == [tmp_path / "runs/b"]


def test_a_torn_line_and_a_torn_heartbeat_are_left_out(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 51, "ti')
    (run / "heartbeat.json").write_text('{"state"')
    state = look([run])[0][0]
    assert (state.step, state.total_steps, state.eta) == (50, None, None)


def test_status_of_nothing_says_what_to_write(tmp_path, capsys):
    assert main(["status", str(tmp_path / "nothing")]) == 2
    assert "write the output_dir of a run" in capsys.readouterr().err


def test_a_table_aligns_numbers_to_the_right():
    lines = table(("name", "n"), [("a", "5"), ("bcdef", "1,000")]).splitlines()
    assert lines == ["name       n", "-" * 12, "a          5", "bcdef  1,000"]


def test_tail_prints_the_end_of_a_ranks_log(run, capsys):
    (run / "logs").mkdir()
    (run / "logs/7_2_log.out").write_text("".join(f"line {i}\n" for i in range(30)))
    assert main(["tail", str(run), "--rank", "2", "--once", "--lines", "2"]) == 0
    assert capsys.readouterr().out == "line 28\nline 29\n"
    assert main(["tail", str(run), "--rank", "4"]) == 1
    assert "job 7 has the ranks 0 to 3" in capsys.readouterr().err
    assert main(["tail", str(run), "--rank", "x"]) == 2
