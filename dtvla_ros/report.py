"""Renders results as HTML pages of one file each: no network, no other file, images inside.

The templates lie in ``templates/``. Each page extends ``base.html``, which holds the frame and the
common style; ``macros.html`` has ``table``, ``properties`` and ``figure``.
"""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtvla_ros.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / 'templates'


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write the page of ``templates/<template>`` whole or not at all.

    Text is escaped unless it is ``Markup``. Errors as `files.write_text`; raises
    ``jinja2.UndefinedError`` if the template needs a value that is not given.
    """
    write_text(path, _environment().get_template(template).render(**values))


def data_uri(image: bytes | Path, kind: str = 'jpeg') -> str:
    """Return an encoded image, or the file that holds it, as a ``src`` of its own."""
    data = image.read_bytes() if isinstance(image, Path) else image
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


@functools.cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters['data_uri'] = data_uri
    return environment
