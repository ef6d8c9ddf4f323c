"""Checks of image shapes, shared by the networks that take images."""

from plastiscope.error import ConfigError


def image_shape(input_shape: tuple[int, ...], net: str, smallest: int) -> tuple[int, int, int]:
    """(channels, height, width) of the inputs of a network that needs images of `smallest` pixels or more a side.

    Raises:
        ConfigError: when the inputs are no images, or too small.
    """
    if len(input_shape) != 3:
        raise ConfigError(f"net={net} needs images, but these inputs have shape {input_shape}; use net=mlp.")
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise ConfigError(
            f"net={net} needs images of {smallest} x {smallest} pixels or more, but these have {height} x {width}; "
            f"set data.resize={smallest} (or more), or use a smaller network."
        )
    return channels, height, width
