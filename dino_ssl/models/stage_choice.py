"""Which blocks stand for the stages of a network whose blocks all have one grid."""

NUM_STAGES = 4


def stage_blocks(num_blocks: int) -> list[int]:
    """The last block of each of four equal parts of a network, rounded up: 2, 5, 8, 11 of twelve; of fewer all."""
    num_stages = min(NUM_STAGES, num_blocks)
    return [-(-num_blocks * stage // num_stages) - 1 for stage in range(1, num_stages + 1)]
