"""The errors a user can cause: one or two sentences that name the cause and the fix, shown without a traceback."""

import errno
from pathlib import Path


class PlastiscopeError(Exception):
    """A mistake outside the code; its text says what is wrong and what to do."""


class ConfigError(PlastiscopeError):
    """A setting that cannot be: unknown key, wrong type, value out of range, settings that exclude each other."""


class DataError(PlastiscopeError):
    """Data that are missing, damaged or not what they should be."""


class RunError(PlastiscopeError):
    """A run folder that cannot be used, or a run that cannot go on."""


def require(condition: bool, field: str, value: object, what: str) -> None:
    """Check a setting in `__post_init__`; the builder puts the config group before the field's name.

    Raises:
        ConfigError: such as "lr=-1.0: must be 0 or more".
    """
    if not condition:
        raise ConfigError(f"{field}={value}: {what}")


FULL = {
    errno.ENOSPC: "no space left on the device that holds {where}; make room",
    errno.EDQUOT: "the disk quota is used up for {where}; make room or have it raised",
    errno.EFBIG: "a file would be larger than this process may write (ulimit -f) in {where}; raise that",
}
"""What to tell of each error of a disk that takes no more; what was written before stands."""
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
FAULTY = (errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT)


def of_the_disk(error: OSError, folder: Path | None = None) -> RunError | None:
    """The same error in a sentence or two, for people; None if it does not speak of a file.

    Args:
        error: of the operating system.
        folder: that was worked in, if it is known: an error in writing names no file.
    """
    where, reason = error.filename or folder, error.strerror or str(error)
    if error.errno in FULL:
        room = folder or where or "what was to be written"
        told = f"{FULL[error.errno].format(where=room)} and start the same command again"
    elif where is None:
        return None
    elif error.errno in NOT_ALLOWED:
        told = f"{where}: {reason}; choose another folder (hydra.run.dir=..., --out), or have its permissions changed"
    elif error.errno in FAULTY:
        told = f"{where}: {reason}; what was saved before stands: when the disk answers again, start the same command"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        told = f"{where}: {reason}; raise the number of files that may be open (ulimit -n)"
    elif error.filename is None:
        return None
    else:
        told = f"{where}: {reason}; see that the path is right"
    found = RunError(told)
    found.__cause__ = error
    return found
