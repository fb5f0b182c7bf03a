"""Import modules of a package without the package's own `__init__`, which runs when somebody needs it."""

import sys
from importlib.util import find_spec, module_from_spec
from typing import Any


def defer_init(name: str) -> None:
    """Let imports of modules of the package `name` skip its `__init__`. Does nothing if it has run, or is missing.

    `__init__` runs when an attribute of the package itself is read for the first time, such as a class that it imports.
    """
    spec = None if name in sys.modules else find_spec(name)
    if spec is None or spec.loader is None:
        return
    package, execute = module_from_spec(spec), spec.loader.exec_module

    def run_init(attribute: str) -> Any:
        if attribute.startswith("__") and attribute != "__version__":
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        if vars(package).pop("__getattr__", None):
            execute(package)
        return getattr(package, attribute)

    vars(package)["__getattr__"] = run_init
    sys.modules[name] = package
