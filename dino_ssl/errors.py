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

    exit_code = 1


class DivergedError(RunError):
    """The loss or the weights are no longer finite (exit code 3)."""

    exit_code = 3


class CollapsedError(RunError):
    """The networks have stopped to learn, and `collapse.on_collapse` wants more than a warning (exit code 4)."""

    exit_code = 4


class Stopped(SystemExit):
    """A signal stopped the run, and everything is saved: 75 to be run again, else 128 and the signal's number.

    A SystemExit, because it is no failure: submitit, for one, goes on waiting for the result of a requeued job.

    Args:
        reason: "requeued" or "stopped".
    """

    def __init__(self, reason: str, exit_code: int, text: str) -> None:
        super().__init__(exit_code)
        self.reason = reason
        self.exit_code = exit_code
        self.text = text

    def __str__(self) -> str:
        return self.text
