"""The one exception a user is meant to read."""


class UserError(ValueError):
    """Bad input or usage: one line that names the thing, the value and the mend. The CLI exits with 2."""
