"""torchmetrics imported in part, in a process of its own: pytest has imported Lightning."""

import subprocess
import sys

PROGRAM = """
import sys
from lightning_utilities.core.imports import RequirementCache
RequirementCache.__bool__ = lambda self: False  # else transformers would be imported with the rest
from lit_lm.cli.torchmetrics_in_part import import_torchmetrics_in_part
import_torchmetrics_in_part()
import torchmetrics
from torchmetrics import Metric, MetricCollection
assert torchmetrics.__version__
assert not {"torchmetrics.functional", "transformers", "scipy"} & sys.modules.keys()
from torchmetrics import Accuracy
assert issubclass(Accuracy, Metric) and torchmetrics.Metric is Metric
assert torchmetrics.functional.accuracy
assert hasattr(torchmetrics, "MeanMetric") and not hasattr(torchmetrics, "NoMetric")
"""


def test_only_what_lightning_uses_is_imported_until_more_is_used() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=100)
