"""The one exception that stands for a mistake of the user, not of the library."""


class UserError(ValueError):
    """Bad input: one clear line that names the file, key or value at fault and the mend.

    Launchers print the line and exit with status 2; library callers may catch it as ValueError.
    """
