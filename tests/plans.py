"""Plans for tests, composed as the command line composes them."""

from plastiscope.build import Plan, compose_plan


def make_plan(*overrides: str) -> Plan:
    """The plan of `plastiscope <overrides>`, on the CPU and without W&B."""
    return compose_plan("use_wandb=false", "device=cpu", *overrides)
