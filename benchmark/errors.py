"""How a verb ends without having done all of its work: a mistake that a user can mend, or a request to stop."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in input or configuration, told in one sentence that names the place and the mend.

    The command line prints the sentence without a traceback and exits with status 1.
    """


class OneProcessError(UserError):
    """What one process of a job has met and the others have not, so that it must tell it, whichever it is."""


class NotFiniteError(UserError):
    """A model's outputs are no finite numbers, as after a training that diverged in its last step."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} is not a finite number, because the model's weights hold NaN or infinity; lower "
            "training.optimizer.learning_rate, which makes another run, and train that"
        )


@contextmanager
def finite_outputs(run_id: str) -> Iterator[None]:
    """A NotFiniteError within names the run."""
    try:
        yield
    except NotFiniteError as error:
        raise UserError(f"run {run_id}: {error}") from error


STOPPED = 75  # EX_TEMPFAIL: the status of a process that was asked to stop; the same command continues its work


class StoppedError(Exception):
    """The work was stopped on request and its state is saved, told in one sentence; exit status STOPPED."""
