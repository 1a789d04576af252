"""What the site changes of the API's docstrings: Sphinx's roles are names in code there."""

from __future__ import annotations

import re
from typing import Any

_ROLE = re.compile(r":(?:class|func|meth|mod|attr):(?=<code>)")


def on_page_content(html: str, **kwargs: Any) -> str:
    """Leaves the role out in front of a name, as in ``:class:`Plugin```."""
    return _ROLE.sub("", html)
