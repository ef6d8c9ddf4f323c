"""The errors a user can cause: one or two sentences that name the cause and the fix, shown without a traceback."""


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
