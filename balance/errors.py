"""The one exception that is meant for the user. Imports nothing, so that every door can know it at once."""


class UserError(Exception):
    """A mistake of the user's: what was given, what is allowed, what to type, in one or two lines.

    The commands print it without a traceback and exit with status 1.
    """
