"""Lightning without the parts of torchmetrics that it does not use.

`import torchmetrics` imports all metrics, and for them transformers and scipy where they are installed: half of the
time that `import lightning` takes then. Lightning uses two of its classes.
"""

import logging
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any

USED = {
    "Metric": "torchmetrics.metric",
    "MetricCollection": "torchmetrics.collections",
    "__version__": "torchmetrics.__about__",
}
"""What Lightning uses, and the modules that define it."""


def import_torchmetrics_in_part() -> None:
    """Import what Lightning uses of torchmetrics; the rest is imported when any of it is used."""
    if "torchmetrics" in sys.modules or (spec := find_spec("torchmetrics")) is None or spec.loader is None:
        return
    module, loader = module_from_spec(spec), spec.loader

    def missing(name: str) -> Any:
        if name in USED:
            return getattr(import_module(USED[name]), name)
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module 'torchmetrics' has no attribute {name!r}")
        del vars(module)["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    vars(module).update(__getattr__=missing, _logger=logging.getLogger("torchmetrics"))
    sys.modules["torchmetrics"] = module
    try:
        for name in ("torchmetrics.utilities", *USED.values()):
            import_module(name)
    except ImportError:  # another version, whose modules need more of the package
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
            del sys.modules[name]
