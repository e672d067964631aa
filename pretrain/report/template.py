"""The pages' templates, with what they share: the style sheet and the macros that lie here."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from pretrain.report import figures


def template(name: str, *folders: Path) -> Template:
    """A template of this folder or of others, which may include what lies here."""
    templates = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["duration"] = figures.duration
    templates.filters["plural"] = figures.plural
    return templates.get_template(name)
