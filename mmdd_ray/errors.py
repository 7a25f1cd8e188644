"""Errors that the command line shows as one sentence; any other exception is a bug and keeps its traceback."""


class UserError(ValueError):
    """A mistake in the settings or the data. The message names the setting and says what to do."""


class ClusterError(Exception):
    """Machines or processes were lost, or did not come, more often than Ray makes up for. The run can be resumed."""


class StorageError(Exception):
    """Storage, or a server that is asked for captions, failed: worth another try, and never a sign of damaged data.

    Not an OSError, because pyarrow and Pillow raise those for damaged bytes.
    """
