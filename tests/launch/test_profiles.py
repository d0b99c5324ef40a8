"""Profiles: every key reaches the script, every mistake is named, and one is chosen."""

import socket
from pathlib import Path
from typing import Any

import pytest

from dino_ssl.config_kinds import PRETRAIN
from dino_ssl.errors import UsageError
from dino_ssl.original_flags import REPLACEMENTS
from launch import profile_files
from launch.profile_files import choose
from launch.profile_help import key_texts, profile_help
from launch.profiles import KINDS, SINGLE, Profile, check, minutes_of
from launch.script import LEAD_SECONDS, Place, executor, lead_seconds

PLACE = Place("dino-run", Path("/shared/run/logs"), Path("/shared/run/code"), Path("/home/me/my work"))


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch) -> Path:
    """An empty folder of profiles of one's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = profile_files.own_folder()
    folder.mkdir(parents=True)
    return folder


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


def script_of(**keys: Any) -> list[str]:
    return executor(Profile(**keys), PLACE).script().splitlines()


def srun_words(script: list[str]) -> list[str]:
    (line,) = (line for line in script if line.startswith("srun "))
    return line.split()


# -- the script ----------------------------------------------------------------------------------------------

KEYS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "partition": ({"partition": "gpu,long"}, ["#SBATCH --partition=gpu,long"]),
    "account": ({"account": "vision"}, ["#SBATCH --account=vision"]),
    "qos": ({"qos": "high"}, ["#SBATCH --qos=high"]),
    "constraint": ({"constraint": "a100&ib"}, ["#SBATCH --constraint='a100&ib'"]),
    "exclude": ({"exclude": "n[1-2]"}, ["#SBATCH --exclude='n[1-2]'"]),
    "nodes": ({"nodes": 3}, ["#SBATCH --nodes=3"]),
    "gpus_per_node": ({"gpus_per_node": 4}, ["#SBATCH --gpus-per-node=4", "#SBATCH --ntasks-per-node=4"]),
    "gpu_type": ({"gpu_type": "a100", "gpus_per_node": 2}, ["#SBATCH --gpus-per-node=a100:2"]),
    "tasks_per_node": ({"tasks_per_node": 2}, ["#SBATCH --ntasks-per-node=2", "#SBATCH --gpus-per-node=1"]),
    "cpus_per_gpu": ({"cpus_per_gpu": 6, "gpus_per_node": 4}, ["#SBATCH --cpus-per-task=6"]),
    "cpus_per_node": ({"cpus_per_node": 12, "gpus_per_node": 4}, ["#SBATCH --cpus-per-task=3"]),
    "memory_per_gpu": ({"memory_per_gpu": 60.0, "gpus_per_node": 4}, ["#SBATCH --mem=240G"]),
    "memory_per_node": ({"memory_per_node": 1.5}, ["#SBATCH --mem=1536M"]),
    "time": ({"time": "2-12:00"}, ["#SBATCH --time=3600"]),
    "setup": ({"setup": ("module load cuda", "source x")}, ["module load cuda", "source x"]),
    "environment": ({"environment": {"NCCL_DEBUG": "IN FO"}}, ["export NCCL_DEBUG='IN FO'"]),
    "srun_args": ({"srun_args": ("--cpu-bind=none",)}, []),
    "sbatch": ({"sbatch": {"reservation": "friday", "--exclusive": True}},
               ["#SBATCH --reservation=friday", "#SBATCH --exclusive"]),
    "python": ({"python": "singularity exec me.sif python"}, []),
    "requeue": ({"requeue": False}, ["#SBATCH --no-requeue"]),
    "signal_seconds": ({"signal_seconds": 300}, ["#SBATCH --signal=USR2@300"]),
}  # fmt: skip


@pytest.mark.parametrize("key", sorted(set(KINDS) - {"hosts"}))
def test_every_key_is_in_the_script_and_only_when_it_is_set(key):
    values, lines = KEYS[key]
    with_key, without = script_of(**values), script_of()
    for line in lines:
        assert line in with_key
        assert line not in without or line == "#SBATCH --gpus-per-node=1"
    assert with_key != without


def test_srun_takes_the_profiles_arguments_after_its_own_and_the_python_that_it_names():
    words = srun_words(script_of(srun_args=("--cpu-bind=none",), python="my python"))
    assert words.index("--kill-on-bad-exit=1") < words.index("--cpu-bind=none") < words.index("my")
    assert " ".join(words).endswith("my python -u -m submitit.core._submit /shared/run/logs")


def test_the_safe_defaults_are_always_there():
    script = script_of(cpus_per_node=4)
    assert {"#SBATCH --open-mode=append", "#SBATCH --requeue", f"#SBATCH --signal=USR2@{LEAD_SECONDS}"} <= set(script)
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=4", "--open-mode=append"} <= set(srun_words(script))
    assert "#SBATCH --chdir='/home/me/my work'" in script
    assert not [line for line in script if "wckey" in line]


def test_ranks_of_the_login_shell_are_forgotten_and_the_snapshot_is_imported_first():
    script = script_of(setup=("module load x",))
    unset = script.index("unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT")
    imported = script.index("export PYTHONPATH=/shared/run/code${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1")
    assert script.index("module load x") < unset < imported


def test_the_warning_leaves_room_for_three_saves():
    assert [lead_seconds(seconds) for seconds in (0.1, 10, 100.5)] == [60, 60, 332]
    timed = executor(Profile(), PLACE, lead_seconds=332).script()
    assert "--signal=USR2@332" in timed
    assert "--signal=USR2@20" in executor(Profile(signal_seconds=20), PLACE, lead_seconds=332).script()


def test_an_array_has_its_cap_and_its_own_log_for_each_task():
    script = executor(Profile(), PLACE, cap=3).script(10)
    assert "#SBATCH --array=0-9%3" in script
    assert "/shared/run/logs/%A_%a_%t_log.out" in script


# -- times ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30:00", 90), ("0:00:01", 1), ("1-0", 1440), ("1-12:30", 2190), ("2-00:00:30", 2881)],
)
def test_times_are_read_as_slurm_reads_them(text, minutes):
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["1:30", "1h", "-5", "1-", "", "1:2:3:4", "1.5"])
def test_a_time_that_people_and_slurm_read_differently_is_none(text):
    assert minutes_of(text) is None


# -- mistakes ------------------------------------------------------------------------------------------------


def problems_of(own_folder: Path, text: str, **changes: Any) -> list[str]:
    write(own_folder, "mine", text)
    with pytest.raises(UsageError) as caught:
        choose("mine", changes)
    return [problem.replace(f"{own_folder}/", "") for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("partitoin: gpu", "mine.yaml:1: unknown key 'partitoin'; did you mean 'partition'?"),
        ("\nnodes: two", 'mine.yaml:2: nodes="two" must be a whole number'),
        ("nodes: true", "mine.yaml:1: nodes=true must be a whole number"),
        ("partition: 3", "mine.yaml:1: partition=3 must be text; write '3' in quotes"),
        ("requeue: no", 'mine.yaml:1: requeue="no" must be true or false'),
        ("time: 1:30", 'mine.yaml:1: time="1:30" must be minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES'),
        ("setup: {a: b}", 'mine.yaml:1: setup={"a": "b"} must be a list of texts'),
        ("environment: [A]", 'mine.yaml:1: environment=["A"] must be lines of `NAME: value`'),
        ("environment: {A: true}", 'mine.yaml:1: environment={"A": true} has A: true, which must be text'),
        ("environment: {A-B: x}", "mine.yaml: environment has 'A-B', which is no name of a variable"),
        ("nodes: 0", "mine.yaml: nodes=0 must be at least 1"),
        ("time: 0", "mine.yaml: time=0 must be at least a minute"),
        ("cpus_per_gpu: 2\ncpus_per_node: 4", "mine.yaml: cpus_per_gpu=2 and cpus_per_node=4 say the same thing twice"),
        ("gpus_per_node: 0\nmemory_per_gpu: 4", "mine.yaml: memory_per_gpu=4.0 says nothing with gpus_per_node=0"),
        ("gpus_per_node: 0\ngpu_type: a", "mine.yaml: gpu_type=a says nothing with gpus_per_node=0"),
        ("tasks_per_node: 8\ncpus_per_node: 4", "mine.yaml: cpus_per_node=4 is less than one for each of 8 ranks"),
        ("sbatch: {time: 5}", "mine.yaml: sbatch has 'time'; write the key time instead"),
        ("sbatch: {cpus-per-task: 5}", "mine.yaml: sbatch has 'cpus-per-task'; write the key cpus_per_gpu instead"),
        ("sbatch: {output: x}", "mine.yaml: sbatch has 'output', which the launcher sets itself"),
        ("srun_args: [x y]", "mine.yaml: srun_args has 'x y'; write options as --name=value"),
        ("nodes: 1\nnodes: 2", "mine.yaml:2: 'nodes' stands above already; keep one of the two"),
        ("- a", "mine.yaml:1: must be lines of `key: value`"),
    ],
)
def test_a_mistake_is_the_one_problem_with_its_line(own_folder, text, problem):
    (only,) = problems_of(own_folder, text)
    assert only.startswith(problem)


def test_all_mistakes_come_at_once(own_folder):
    found = problems_of(own_folder, "partitoin: x\nnodes: x\ntime: 0\n", gpus_per_node=-1)
    words = ["partitoin", "nodes", "gpus_per_node", "time"]
    assert all(word in problem for word, problem in zip(words, found, strict=True))


# -- the choice ----------------------------------------------------------------------------------------------


def test_the_shipped_profiles_are_sound():
    names = [path.stem for path in Path(profile_files.__file__).parent.glob("clusters/*.yaml")]
    assert {"cpu", "gpu"} <= set(names)
    for name in names:
        assert check(choose(name, {}).profile) == []


def test_ones_own_profile_wins_over_the_shipped_one_of_that_name(own_folder):
    mine = write(own_folder, "gpu", "nodes: 7")
    assert choose("gpu", {}).profile.nodes == 7
    assert choose("gpu", {}).file == mine


def test_flags_win_over_the_file(own_folder):
    write(own_folder, "mine", "nodes: 7\nqos: low")
    assert choose("mine", {"nodes": 2}).profile == Profile(nodes=2, qos="low")


def test_the_profile_of_this_host_is_taken_then_the_only_one(own_folder):
    write(own_folder, "a", "nodes: 7")
    assert choose(None, {}).profile.nodes == 7
    write(own_folder, "b", f"hosts: ['nowhere', '{socket.gethostname()[:3]}*']\nnodes: 5")
    chosen = choose(None, {})
    assert chosen.profile.nodes == 5
    assert str(chosen.file) in chosen.line() and "5 nodes x 1 rank" in chosen.line() and "hosts" in chosen.line()


@pytest.mark.parametrize("name", [None, "gpuu"])
def test_without_a_profile_the_error_shows_how_to_write_one(own_folder, name):
    with pytest.raises(UsageError) as caught:
        choose(name, {}, ["an earlier mistake"])
    earlier, problem = caught.value.problems
    assert earlier == "an earlier mistake"
    assert str(own_folder / "NAME.yaml") in problem
    if name:
        assert "did you mean 'gpu'?" in problem
    example = "\n".join(line.strip() for line in problem.splitlines() if line.startswith("    "))
    write(own_folder, "NAME", example)
    assert choose("NAME", {}).profile.gpus_per_node == 8


def test_a_profile_may_be_named_by_its_file(tmp_path):
    assert choose(str(write(tmp_path, "x", "nodes: 2")), {}).profile.nodes == 2
    with pytest.raises(UsageError, match="no such file"):
        choose(str(tmp_path / "missing.yaml"), {})


def test_no_key_of_a_profile_is_a_knob_of_the_training():
    assert not set(SINGLE) & (set(PRETRAIN.knobs) | set(REPLACEMENTS))


def test_the_help_has_every_key_and_every_profile():
    assert set(key_texts()) == set(KINDS)
    text = profile_help()
    assert all(f"\n  {key} " in text for key in KINDS)
    assert "clusters/gpu.yaml" in text
