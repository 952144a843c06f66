"""The one exception that means: the user can fix this."""


class InvalidInputError(Exception):
    """Raised for a value, file or flag that cannot be used.

    Its message is one sentence that names the key, the value and the fix; the command line prints it without a
    traceback and exits with status 2.
    """
