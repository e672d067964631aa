"""What a download lost of its table, on a page: by reason, by host and by year."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.sources.links import reason_of
from pretrain.base.files import write_durably
from pretrain.report.figures import percent
from pretrain.report.table import Table
from pretrain.report.template import template

_ROWS = 1 << 16  # in memory at once
_HOSTS = 200_000  # counted at a time; of more, the half with the fewest links is counted together
_SHOWN_HOSTS = 30
_HOST = r"^[A-Za-z][\w+.-]*://(?:[^/?#@]*@)?(\[[^\]]*\]|[^/:?#]+)"
_YEAR = r"^\s*((?:19|20)\d\d)(?:$|\D)"
_YEAR_NAMES = re.compile(
    r"year|date|datetime|time|timestamp|created|published|(.*_)?(year|date|at|time)", re.IGNORECASE
)


@dataclass(kw_only=True)
class Lost:
    """Links that were tried and those that are alive; of both, by host and by year."""

    tried: int = 0
    alive: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    hosts: dict[str, Counter[str]] = field(default_factory=lambda: _both())
    years: dict[str, Counter[str]] = field(default_factory=lambda: _both())
    year_column: str | None = None
    folded: bool = False  # whether hosts of few links were counted together

    def add(self, rows: pl.DataFrame) -> None:
        """Count some rows of img2dataset's: url, status, error_message and perhaps a year."""
        is_alive = rows["status"] == "success"
        self.tried += len(rows)
        self.alive += int(is_alive.sum())
        lost = rows.filter(~is_alive)["error_message"].fill_null("").value_counts()
        for message, count in lost.iter_rows():
            self.reasons[reason_of(message)] += count
        hosts = rows["url"].str.extract(_HOST).str.to_lowercase().fill_null("no host")
        _count(self.hosts, hosts, is_alive)
        self._fold_hosts()
        if "year" in rows.columns:
            _count(self.years, rows["year"].fill_null("no year"), is_alive)

    def _fold_hosts(self) -> None:
        tried = self.hosts["tried"]
        if len(tried) > _HOSTS:
            self.folded = True
            kept = dict(tried.most_common(_HOSTS // 2))
            for name, counts in self.hosts.items():
                self.hosts[name] = Counter({host: counts[host] for host in kept})


def _both() -> dict[str, Counter[str]]:
    return {"tried": Counter(), "alive": Counter()}


def _count(into: dict[str, Counter[str]], names: pl.Series, is_alive: pl.Series) -> None:
    """Count rows, and those that are alive, by name."""
    for kind, counted in (("tried", names), ("alive", names.filter(is_alive))):
        for name, count in counted.value_counts().iter_rows():
            into[kind][name] += count


def read_lost(folders: list[Path]) -> Lost:
    """What img2dataset's own tables beside its tars say, read a piece at a time."""
    lost = Lost()
    for folder in folders:
        for file in sorted(folder.glob("[0-9]*.parquet")):
            if not file.with_name(f"{file.stem}_stats.json").exists():
                continue  # being written
            for rows in _pieces(file, lost):
                lost.add(rows)
    return lost


def _pieces(file: Path, lost: Lost) -> Iterator[pl.DataFrame]:
    """Rows of a file; `year` as text, where a column tells it."""
    with pq.ParquetFile(file) as parquet:
        names = parquet.schema_arrow.names
        if lost.year_column is None:
            lost.year_column = next((name for name in names if _YEAR_NAMES.fullmatch(name)), None)
        year = lost.year_column if lost.year_column in names else None
        columns = ["url", "status", "error_message", *([year] if year else [])]
        for batch in parquet.iter_batches(batch_size=_ROWS, columns=columns):
            rows = pl.DataFrame(pa.Table.from_batches([batch]))
            rows = rows.with_columns(pl.col(columns[:3]).cast(pl.String))
            if year is not None:
                text = rows[year].cast(pl.String, strict=False)
                rows = rows.with_columns(text.str.extract(_YEAR).alias("year"))
            yield rows


def write_page(path: Path, out: Path, folders: list[Path], links: int) -> None:
    """Write the page of a table of so many links."""
    lost = read_lost(folders)
    page = template("lost.html", Path(__file__).parent).render(
        name=out.resolve().name,
        links=links,
        lost=lost,
        cards=_cards(lost, links),
        reasons=_reasons(lost),
        hosts=_alive_table("host", lost.hosts, _SHOWN_HOSTS),
        hosts_count=len(lost.hosts["tried"]),
        years=_alive_table("year", lost.years, None),
    )
    write_durably(path, page)


def _cards(lost: Lost, links: int) -> list[tuple[str, str, str]]:
    """(what, value, beside it) of the figures to begin with."""
    most = lost.reasons.most_common(1)
    gone, hosts = lost.tried - lost.alive, len(lost.hosts["tried"])
    came = percent(lost.alive / max(lost.tried, 1))
    beside = f"most by {most[0][0]}: {most[0][1]:,}" if most else "none"
    rest = links - lost.tried
    return [
        ("Links in the table", f"{links:,}", f"{rest:,} not tried yet" if rest else "all tried"),
        ("Still alive", f"{lost.alive:,}", f"{came} of those tried"),
        ("Lost", f"{gone:,}", beside),
        ("Hosts", f"{'over ' if lost.folded else ''}{hosts:,}", "servers by name"),
    ]


def _reasons(lost: Lost) -> Table:
    rows = [
        ("", [reason, f"{count:,}", percent(count / max(lost.tried, 1))])
        for reason, count in lost.reasons.most_common()
    ]
    return Table(head=["reason", "links", "of those tried"], rows=rows)


def _alive_table(head: str, counts: dict[str, Counter[str]], most: int | None) -> Table:
    """The largest by links, or all in order of their names."""
    tried, alive = counts["tried"], counts["alive"]
    shown = sorted(tried.items())
    if most is not None:
        shown = sorted(shown, key=lambda item: -item[1])[:most]
    rows = [
        ("", [name, f"{count:,}", f"{alive[name]:,}", percent(alive[name] / count)])
        for name, count in shown
    ]
    return Table(head=[head, "links", "alive", "share alive"], rows=rows)
