"""The procedure of pretraining: loop, optimizer, checkpoints, journal, ranks."""
