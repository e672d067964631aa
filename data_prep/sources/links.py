"""What became of the links of a table: img2dataset's NNNNN_stats.json beside each NNNNN.tar.

img2dataset 1.47.0 writes it last (`write_stats` in img2dataset/logger.py), so a tar without one is
half written. `status_dict` there counts the messages of urllib and of its resizer as they came.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATS_SUFFIX = "_stats.json"
# What a message holds -> the reason under which it is counted; the first that fits.
_REASONS = (
    ("disallowed by X-Robots-Tag", "robots_tag"),
    ("timed out", "timeout"),
    ("hash mismatch", "hash_mismatch"),
    ("decoding error", "undecodable"),
    ("a link to a private address", "private_address"),
    ("Name or service not known", "unknown_host"),
    ("No address associated with hostname", "unknown_host"),
    ("Temporary failure in name resolution", "name_server"),
    ("CERTIFICATE_VERIFY_FAILED", "certificate"),
    ("<urlopen error", "unreachable"),
    ("IncompleteRead", "connection_lost"),
    ("Remote end closed", "connection_lost"),
    ("Connection reset", "connection_lost"),
)
_HTTP_ERROR = "HTTP Error "  # then the status: "HTTP Error 404: Not Found"


@dataclass(kw_only=True)
class LinkCounts:
    """Links that were tried, those whose file came, and the others by reason."""

    links: int = 0
    downloaded: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, other: "LinkCounts") -> None:
        """Count another shard's, or another download's."""
        self.links += other.links
        self.downloaded += other.downloaded
        self.failed.update(other.failed)

    def plain(self) -> dict[str, Any]:
        """As a manifest holds it, reasons by name."""
        failed = {reason: self.failed[reason] for reason in sorted(self.failed)}
        return {"links": self.links, "downloaded": self.downloaded, "failed": failed}


def _stats_file(tar: Path) -> Path:
    """Where the statistics of a shard stand."""
    return tar.with_name(tar.stem + STATS_SUFFIX)


def read_counts(path: Path) -> LinkCounts:
    """The counts of one shard. ValueError names a file that does not hold them."""
    try:
        found = json.loads(path.read_bytes())
        links, downloaded = int(found["count"]), int(found["successes"])
        failed: Counter[str] = Counter()
        for message, count in found["status_dict"].items():
            if message != "success":
                failed[reason_of(message)] += int(count)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"source: {path} is not img2dataset's statistics ({error!r}); remove it and give "
            "`python -m data_prep download` again, which makes its shard again"
        ) from error
    # Messages beyond 100,000 different ones, and samples that img2dataset itself stumbled over.
    if uncounted := links - downloaded - failed.total():
        failed["other"] += uncounted
    return LinkCounts(links=links, downloaded=downloaded, failed=failed)


def reason_of(message: str) -> str:
    """The reason for a message of urllib or of img2dataset."""
    if message.startswith(_HTTP_ERROR):
        return "http_" + message.removeprefix(_HTTP_ERROR)[:3]
    return next((reason for part, reason in _REASONS if part in message), "other")


def counts_of_tars(tars: Iterable[Path]) -> LinkCounts | None:
    """The counts beside some tars; None where none has any.

    ValueError if a tar lacks them that lies beside others that have them: it is half written.
    """
    total = LinkCounts()
    having: set[Path] = set()
    lacking: list[Path] = []
    for tar in tars:
        if _stats_file(tar).is_file():
            total.add(read_counts(_stats_file(tar)))
            having.add(tar.parent)
        else:
            lacking.append(tar)
    unfinished = [tar for tar in lacking if tar.parent in having]
    if unfinished:
        raise ValueError(
            f"source: {unfinished[0]} has no {_stats_file(unfinished[0]).name} beside it, so its "
            f"download was not finished ({len(unfinished)} such tars); give the command of "
            "`python -m data_prep download` again, or leave it out of --source"
        )
    return total if having else None


def describe_counts(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines for people of what `plain` gave: (label, value)."""
    links = max(found["links"], 1)
    came = f"{found['downloaded']:,} of {found['links']:,} ({found['downloaded'] / links:.1%})"
    most = sorted(found["failed"].items(), key=lambda item: (-item[1], item[0]))
    return [
        ("links downloaded", came),
        *((f"  {reason}", f"{count:,} ({count / links:.2%})") for reason, count in most),
    ]
