"""What can go wrong for a user; `cli.main` turns each kind into its exit code."""


class UsageError(ValueError):
    """A mistake in the configuration or the input, found before any work started (exit code 2).

    Args:
        problems: every mistake at once, each one line that names the knob or file and what to write instead.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class RunError(RuntimeError):
    """The run cannot go on; what was saved before is untouched (exit code 1)."""


class DivergedError(RunError):
    """The loss or the weights are no longer finite (exit code 3)."""
