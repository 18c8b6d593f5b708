"""The configs of tools/check_plan.py; what it measures is not tested."""

import check_plan

from lit_lm.cli.plan import planned_run
from lit_lm.cli.plan_options import Options


def test_the_configs_are_as_their_names_say() -> None:
    runs = {name: planned_run(Options(args), "h100").setup for name, args in check_plan.CONFIGS.items()}
    sizes = [setup.parameters / 1e6 for setup in runs.values()]
    assert (round(min(sizes), 1), round(max(sizes), 1)) == (0.8, 124.4)
    for name, setup in runs.items():
        _, optimizer, _, mode = name.split(", ")
        assert (setup.optimizer, "compiled" if setup.compiled else "eager") == (optimizer, mode)
