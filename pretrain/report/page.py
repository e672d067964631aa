"""The page as a whole: the sections in reading order, in one file without outside requests."""

from pathlib import Path
from string import Template

from pretrain.report.comparison import comparison_section
from pretrain.report.curves import curve_section
from pretrain.report.gallery import gallery_section
from pretrain.report.markup import escaped, join
from pretrain.report.overview import environment, headline, recipe_section, stage_section
from pretrain.report.results import result_section
from pretrain.report.run_folder import Record, Run

_TEMPLATE = Path(__file__).with_name("page.html")
_STYLE = Path(__file__).with_name("page.css")


def render(run: Run, comparison: Record | None = None) -> str:
    """The report of a run as HTML text; a part without records is left out with a sentence."""
    body = join(
        [
            headline(run),
            stage_section(run),
            result_section(run),
            comparison_section(run, comparison),
            curve_section(run),
            gallery_section(run),
            recipe_section(run),
            environment(run),
        ],
        separator="\n",
    )
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    style = _STYLE.read_text(encoding="utf-8")
    return template.substitute(title=escaped(f"{run.name}: run report"), style=style, body=body)
