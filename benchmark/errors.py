"""Errors that a user can cause and mend."""


class UserError(Exception):
    """A mistake in input or configuration, told in one sentence that names the place and the mend.

    The command line prints the sentence without a traceback and exits with status 1.
    """
