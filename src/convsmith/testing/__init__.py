"""Conformance suites for what can be added to convsmith: each ``check_*`` raises if an object breaks its kind's rules.

Every file ``check_KIND.py`` of this room gives its function of the same name here.
"""

import importlib
import pkgutil

from convsmith.testing.suite import Conformance, Nonconforming

__all__ = ["Conformance", "Nonconforming"]

for _item in pkgutil.iter_modules(__path__):
    if _item.name.startswith("check_"):
        globals()[_item.name] = getattr(importlib.import_module(f"{__name__}.{_item.name}"), _item.name)
        __all__ += [_item.name]  # noqa: PLE0604  (names are strings)
