"""Plans for tests, composed as the command line composes them."""

from functools import cache

from plastiscope.build import Plan, build, compose_config

composed = cache(compose_config)
"""A config is composed once, and built for each plan anew."""


def make_plan(*overrides: str) -> Plan:
    """The plan of `plastiscope <overrides>`, on the CPU, without W&B and (these take most of a short run) figures."""
    given = ("use_wandb=false", "device=cpu", "figures=false", *overrides)
    return build(composed(*given), given)
