"""The exceptions that stand for a mistake of the user or of a file, not of the library."""


class UserError(ValueError):
    """Bad input: one clear line that names the file, key or value at fault and the mend.

    Launchers print the line and exit with status 2; library callers may catch it as ValueError.
    """


class BadRecord(UserError):
    """One malformed record or unreadable picture of a data set.

    Batches go on without it as long as there are few of them (`Source.max_bad`).
    """
