"""How a verb ends without having done all of its work: a mistake that a user can mend, or a request to stop."""


class UserError(Exception):
    """A mistake in input or configuration, told in one sentence that names the place and the mend.

    The command line prints the sentence without a traceback and exits with status 1.
    """


class OneProcessError(UserError):
    """What one process of a job has met and the others have not, so that it must tell it, whichever it is."""


STOPPED = 75  # EX_TEMPFAIL: the status of a process that was asked to stop; the same command continues its work


class StoppedError(Exception):
    """The work was stopped on request and its state is saved, told in one sentence; exit status STOPPED."""
