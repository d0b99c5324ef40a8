"""A process finds its rank in the environments that launchers really leave."""

import pytest

from dino_ssl.errors import UsageError
from dino_ssl.training.ranks import Placement, SlurmJob, placement, seconds_to_wait, slurm_job, tasks_per_node

# Of Slurm 22.05, for `sbatch --nodes=2 --ntasks-per-node=2`.
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "55603027", "SLURM_NNODES": "2", "SLURM_NODEID": "0", "SLURM_LOCALID": "0", "SLURM_PROCID": "0",
    "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
TASK = {
    **BATCH_SCRIPT, "SLURM_NODEID": "1", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2",
    "GROUP_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29400", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
OF_TASK = Placement(rank=3, world_size=4, local_rank=1, local_world_size=2, num_nodes=2, launcher="Slurm", node=1)
OF_TORCHRUN = Placement(
    rank=5, world_size=8, local_rank=1, local_world_size=4, num_nodes=2, launcher="torchrun", has_address=True, node=1
)
SUBMITIT_LOCAL = {
    "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_NNODES": "1",
    "SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_LOCALID": "1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Placement()),
        (TORCHRUN, OF_TORCHRUN),
        (TASK, OF_TASK),
        (TASK | TORCHRUN, OF_TORCHRUN),
        (TASK | {"SUBMITIT_EXECUTOR": "slurm"}, Placement(3, 4, 1, 2, 2, "submitit", node=1)),
        (SUBMITIT_LOCAL, Placement(1, 2, 1, 2, 1, "submitit")),
        (BATCH_SCRIPT, Placement()),
        (BATCH_SCRIPT | {"SUBMITIT_EXECUTOR": "slurm"}, Placement()),
        (TASK | {"SLURM_STEP_ID": "4294967290"}, Placement()),
    ],
    ids=[
        "nothing", "torchrun", "srun", "torchrun in a step of srun", "submitit on Slurm", "submitit on one machine",
        "a batch script without srun", "submitit without srun", "the shell of salloc",
    ],
)  # fmt: skip
def test_a_process_finds_its_place(environment, expected):
    assert placement(environment) == expected


def test_nodes_start_one_after_the_other_within_a_bound():
    waits = [seconds_to_wait(Placement(node=node)) for node in (0, 1, 10, 1000)]
    assert waits == pytest.approx([0, 0.1, 1, 20])


def test_an_environment_that_is_not_whole_is_refused_with_the_missing_name():
    with pytest.raises(UsageError, match=r"KeyError: 'RANK'.*start the ranks with torchrun or srun"):
        placement({"WORLD_SIZE": "4"})


@pytest.mark.parametrize(("text", "counts"), [("1", [1]), ("2(x3),1", [2, 2, 2, 1]), ("3,1(x2)", [3, 1, 1])])
def test_slurms_short_form_of_counts_is_written_out(text, counts):
    assert tasks_per_node(text) == counts


def test_a_task_of_an_array_is_named_so_that_a_requeue_does_not_take_the_whole_array():
    array = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2", "SLURM_RESTART_COUNT": "3"}
    assert slurm_job(array) == SlurmJob("7_2", 3)
    assert slurm_job({"SLURM_JOB_ID": "7"}) == SlurmJob("7", 0)
    assert slurm_job({}) is None
