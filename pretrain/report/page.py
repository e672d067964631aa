"""The page as a whole: the sections in reading order, in one file without outside requests."""

from pretrain.report.abilities import ability_charts, indistinct_note
from pretrain.report.curves import curves
from pretrain.report.gallery import confusions_of, gallery_of
from pretrain.report.overview import environment, headline_cards, lead, stage_table
from pretrain.report.results import result_tables
from pretrain.report.run_folder import Run
from pretrain.report.several import differences, figures_tables, names_of, overlaid
from pretrain.report.summary import final_figures, set_names
from pretrain.report.template import template


def render(run: Run) -> str:
    """The report of a run as HTML text; a part without records is left out with a sentence."""
    return template("page.html").render(
        run=run,
        lead=lead(run),
        sets=set_names(final_figures(run)),
        cards=headline_cards(run),
        stages=stage_table(run),
        results=result_tables(run),
        abilities=ability_charts(run),
        indistinct=indistinct_note(run),
        curves=curves(run),
        gallery=gallery_of(run),
        confusions=confusions_of(run),
        environment=environment(run),
    )


def render_several(runs: list[Run]) -> str:
    """Several runs on one page, as HTML text."""
    names = names_of(runs)
    return template("several.html").render(
        runs=runs,
        names=names,
        differences=differences(runs, names),
        tables=figures_tables(runs, names),
        curves=overlaid(runs, names),
    )
