"""Plans for tests, composed as the command line composes them."""

from plastiscope.build import Plan, compose_plan

USUAL = "analysis=[representation,continual]"
"""What the default experiment looks at, but for the landscape, which takes most of a short run."""


def make_plan(*overrides: str) -> Plan:
    """The plan of `plastiscope <overrides>`, on the CPU, without W&B and (these take most of a short run) figures."""
    usual = [] if any(o.startswith(("analysis=", "experiment=")) for o in overrides) else [USUAL]
    return compose_plan("use_wandb=false", "device=cpu", "figures=false", *usual, *overrides)
