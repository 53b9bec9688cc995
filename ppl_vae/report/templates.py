"""The templates of the pages. All pages share the style of ``page.html.jinja``."""

from pathlib import Path
from typing import Any

__all__ = ["filled_template"]

PACKAGE = Path(__file__).parents[1]


def filled_template(template: str, **values: Any) -> str:
    """Fill in a template.

    Args:
        template: Path of the template inside the package ``ppl_vae``.
        values: The variables of the template. They are escaped, and a variable that is missing is an error.

    Returns:
        A page of HTML.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template(template).render(**values)
