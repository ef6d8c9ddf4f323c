"""Plans for tests, composed as the command line composes them."""

from hydra import compose, initialize_config_module

from plastiscope.build import Plan, build


def make_plan(*overrides: str) -> Plan:
    """The plan of `plastiscope <overrides>`, on the CPU and without W&B."""
    with initialize_config_module("plastiscope.configs", version_base="1.3"):
        return build(compose("config", ["use_wandb=false", "device=cpu", *overrides]))
