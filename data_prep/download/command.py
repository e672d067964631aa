"""The pictures of a table of links, fetched by img2dataset as WebDataset tars that `build` reads.

Pictures stay the bytes that were sent, unless a size is named: the build then makes each tier by
one resize of the original, upright and with its colour profile, and judges what is no picture.
img2dataset's resizer leaves EXIF orientation and ICC profiles aside (cv2.IMREAD_UNCHANGED).
"""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from subprocess import DEVNULL, run
from typing import Any

from data_prep.build.request import differing
from data_prep.download import guard
from data_prep.download.img2dataset_run import run_logged
from data_prep.download.link_tables import Columns, choose_columns, stage_tables, table_files
from data_prep.download.page import write_page
from data_prep.download.shares import folders_of, share_folder, stage_share
from data_prep.pool import ShareOptions, share_of, usable_workers
from data_prep.sources.links import STATS_SUFFIX, LinkCounts, describe_counts, read_counts
from data_prep.sources.plain_tables import SUFFIXES
from data_prep.sources.stores import bring_all, is_far
from pretrain.base.checks import check_local, check_positive
from pretrain.base.files import write_durably
from pretrain.base.lock import locked_aloud

# Beside the shards: img2dataset takes every .json of its own folder for a shard's statistics.
_STATE_FOLDER = ".download"
_TABLE_FOLDER = "table"
_FAR_FOLDER = "far"  # tables that were brought from an object store
_REQUEST_FILE = "request.json"
_REQUIREMENTS = "requirements-download.txt"
_ROBOTS_DIRECTIVES = ["noai", "noimageai", "noindex", "noimageindex"]
# What may change when a download goes on.
_FREE_OPTIONS = (
    "processes",
    "threads",
    "timeout_s",
    "retries",
    "user_agent_token",
    "python",
    "private_addresses",
    "task_index",
    "page",
)


@dataclass(frozen=True, kw_only=True)
class DownloadOptions(ShareOptions):
    """How the pictures of a table of links are fetched"""

    url_column: str | None = None
    """Column of the links. Null: the only well-known one (url, image_url, link and the like, in any
    case)."""
    caption_column: str | None = None
    """Column of the captions. Null: the only well-known one (caption, text, alt_text and the like,
    in any case)."""
    sha256_column: str | None = None
    """Column of the sha256 (hexadecimal) that each file must have; others are counted as
    hash_mismatch. DataComp has one."""
    columns: str | None = None
    """Names of all columns, by commas, of a CSV or TSV without a first line of names. Null: url
    and caption, where there are two (CC12M, CC3M)."""
    image_px: int | None = None
    """Shrink pictures to this shortest side, never enlarge (img2dataset's keep_ratio and
    resize_only_if_bigger). Smaller on disk, but EXIF rotation and colour profiles are lost where it
    shrinks. Null: the files as they were sent."""
    jpeg_quality: int = 95
    """Of the pictures that --image-px shrinks."""
    shard_links: int = 10_000
    """Links a tar; what is lost and fetched again after a kill is the tars that were being
    written."""
    processes: int | None = None
    """img2dataset's processes, each with a tar of its own. Null: as many as usable cores."""
    threads: int = 64
    """Links at a time in each process."""
    timeout_s: int = 10
    """How long a server may be silent."""
    retries: int = 2
    """How often a link that failed is tried again at once."""
    user_agent_token: str | None = None
    """Name under which the download makes itself known; X-Robots-Tag lines for this name are heeded
    beside those for everybody."""
    private_addresses: bool = False
    """Whether links to this machine and to private networks are followed: for a mirror of your own.
    Else they are counted as failed, as is every link that is not http or https."""
    python: Path | None = None
    """Interpreter of the environment that has img2dataset. Null: this one, or else the img2dataset
    on PATH."""

    page: Path | None = None
    """HTML page to write at the end: links lost by reason, links alive by host and by year. Null:
    none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(
            {
                "--image-px": self.image_px,
                "--shard-links": self.shard_links,
                "--processes": self.processes,
                "--threads": self.threads,
                "--timeout-s": self.timeout_s,
            }
        )
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"--jpeg-quality={self.jpeg_quality}: choose 1 to 100")
        if self.retries < 0:
            raise ValueError(f"--retries={self.retries}: choose 0 or more")


def download(table: str, out: Path, options: DownloadOptions) -> str:
    """Fetch what is not there yet; returns what became of the links.

    ValueError, FileNotFoundError or FileExistsError name the option to change; OSError a download
    that ended early, which the same command takes up again.
    """
    check_local({"out": out})
    program = _find_img2dataset(options.python)
    if is_far(table):
        table = str(bring_all(table, SUFFIXES, out / _STATE_FOLDER / _FAR_FOLDER))
    request = _describe_request(table, options)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"out={out} is a file; name a folder")
    state = out / _STATE_FOLDER
    _refuse_other(out, request)
    with locked_aloud(state, "the download") as lock:
        _refuse_other(out, request)  # of shares that begin at once, the first one has decided
        write_durably(state / _REQUEST_FILE, json.dumps(request, indent=2) + "\n")
        names = None if options.columns is None else options.columns.split(",")
        asked = (options.url_column, options.caption_column, options.sha256_column)
        texts = [name for name in asked if name is not None]
        schema, rows = stage_tables(table, names, state / _TABLE_FOLDER, texts)
        columns = choose_columns(
            table, schema, options.url_column, options.caption_column, options.sha256_column
        )
        if columns.dropped:
            print(f"note: columns left out: {columns.dropped}", file=sys.stderr)
        if options.task_index is None:
            _fetch(out, program, columns, rows, options, lock)
    mine = share_of(rows, options)
    folder = share_folder(out, options.task_index)
    if options.task_index is not None:
        own = folder / _STATE_FOLDER
        with locked_aloud(own, "the share") as lock:
            tables = state / _TABLE_FOLDER
            stage_share(tables, mine, columns, options.sha256_column, own / _TABLE_FOLDER)
            _fetch(folder, program, columns, len(mine), options, lock)
    found = _counts_of([folder])
    if options.page is not None:
        write_page(options.page, out, folders_of(out), rows)
    lines = [("pictures", str(folder)), *describe_counts(found.plain())]
    told = "\n".join(f"{label:<24}{value}" for label, value in lines)
    return f"{told}\n{_what_next(out, rows, options)}"


def _what_next(out: Path, rows: int, options: DownloadOptions) -> str:
    """What is to be done when this share is finished."""
    tried = _counts_of(folders_of(out)).links
    if tried < rows:
        return (
            f"share {options.task_index} of {options.task_count} is done; of all, {tried:,} of "
            f"{rows:,} links"
        )
    return f"python -m data_prep build --source {out} --out DIR"


def _fetch(
    folder: Path,
    program: list[str],
    columns: Columns,
    rows: int,
    options: DownloadOptions,
    lock: int,
) -> None:
    """Fetch what is missing of the `rows` links of a folder's tables. OSError where img2dataset
    ended early."""
    state = folder / _STATE_FOLDER
    _drop_damaged(folder)
    if _counts_of([folder]).links < rows:
        command = [*program, *_arguments(folder, columns, options)]
        write_durably(state / "guard/sitecustomize.py", Path(guard.__file__).read_bytes())
        environment = {"PYTHONPATH": str((state / "guard").resolve())}
        if options.private_addresses:
            environment[guard.ALLOW] = "1"
        log = state / "log.txt"
        run_logged(command, environment, log, rows, lambda: _counts_of([folder]), lock)
    found = _counts_of([folder])
    if found.links != rows:
        raise OSError(
            f"{folder}: img2dataset ended after {found.links:,} of {rows:,} links; give the same "
            f"command again to go on ({state / 'log.txt'} has its output)"
        )


def _find_img2dataset(python: Path | None) -> list[str]:
    """The words that start img2dataset. FileNotFoundError says how to install it."""
    asked = python if python is not None else Path(sys.executable)
    if python is not None and shutil.which(python) is None:
        raise FileNotFoundError(f"--python={python}: no such program")
    test = "import sys, importlib.util as i; sys.exit(i.find_spec('img2dataset') is None)"
    if run([asked, "-c", test], stdout=DEVNULL, stderr=DEVNULL, check=False).returncode == 0:
        return [str(asked), "-m", "img2dataset.main"]
    program = shutil.which("img2dataset") if python is None else None
    if program is None:
        where = f"--python={python}" if python else f"{asked} and on PATH"
        raise FileNotFoundError(
            f"img2dataset is not found ({where}); install it into an environment of its own "
            f"(Python 3.10 to 3.12): python -m venv .venv-download && .venv-download/bin/pip "
            f"install -r {_REQUIREMENTS}, and name .venv-download/bin/python with --python"
        )
    return [program]


def _describe_request(table: str, options: DownloadOptions) -> dict[str, Any]:
    """What decides which link goes to which tar, and what is stored of it."""
    fixed = {name: value for name, value in asdict(options).items() if name not in _FREE_OPTIONS}
    return {"files": table_files(table), "options": fixed}


def _refuse_other(out: Path, request: dict[str, Any]) -> None:
    """FileExistsError if `out` holds anything but an earlier part of this very download."""
    file = out / _STATE_FOLDER / _REQUEST_FILE
    if file.is_file():
        other = list(differing(json.loads(file.read_bytes()), request, ""))
        if other:
            raise FileExistsError(
                f"out={out} holds a download made with other {', '.join(other)}; give the same "
                "table and options to go on, or choose another OUT"
            )
    elif any(path.name != _STATE_FOLDER for path in out.glob("*")):
        raise FileExistsError(f"out={out} holds other files; choose an empty or new folder")


def _drop_damaged(out: Path) -> None:
    """Remove statistics that a kill left half written, so that their tar is made anew."""
    for path in out.glob("*" + STATS_SUFFIX):
        try:
            read_counts(path)
        except ValueError:
            path.unlink()


def _counts_of(folders: list[Path]) -> LinkCounts:
    """The counts of all tars that are done; one whose file is being written counts later."""
    total = LinkCounts()
    for path in chain.from_iterable(folder.glob("*" + STATS_SUFFIX) for folder in folders):
        try:
            total.add(read_counts(path))
        except ValueError:
            continue
    return total


def _arguments(out: Path, columns: Columns, options: DownloadOptions) -> Iterator[str]:
    """The options of img2dataset 1.47.0; as Python literals, which is how it reads them."""
    values: dict[str, Any] = {
        "url_list": str((out / _STATE_FOLDER / _TABLE_FOLDER).resolve()),
        "input_format": "parquet",
        "url_col": columns.url,
        "caption_col": columns.caption,
        "save_additional_columns": columns.kept or None,
        "output_folder": str(out.resolve()),
        "output_format": "webdataset",
        "number_sample_per_shard": options.shard_links,
        "processes_count": usable_workers(options.processes),
        "thread_count": options.threads,
        "timeout": options.timeout_s,
        "retries": options.retries,
        "user_agent_token": options.user_agent_token,
        "disallowed_header_directives": _ROBOTS_DIRECTIVES,
        "incremental_mode": "incremental",
        "compute_hash": "sha256",
        "enable_wandb": False,
    }
    if options.sha256_column is not None:
        values["verify_hash"] = [options.sha256_column, "sha256"]
    if options.image_px is None:
        values |= {"disable_all_reencoding": True, "extract_exif": False}
    else:
        values |= {
            "image_size": options.image_px,
            "resize_mode": "keep_ratio",
            "resize_only_if_bigger": True,
            "skip_reencode": True,
            "encode_quality": options.jpeg_quality,
        }
    for name, value in values.items():
        yield f"--{name}={value!r}"
