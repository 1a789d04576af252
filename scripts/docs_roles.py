"""What the site changes of the API's docstrings: Sphinx's roles are names in code there."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr):(?=`)")


class PlainRoles(griffe.Extension):
    """Leaves the role out in front of a name, as in ``:class:`Plugin```."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes the docstring of a module, class, function or attribute that was read."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub("", obj.docstring.value)
