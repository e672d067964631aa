"""What decides the bytes of a build, as plan and manifest hold it: another request, other bytes."""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import features

from data_prep.build.options import BuildOptions
from data_prep.build.tasks import COLUMNS, DOWNLOADS, HUB, read_look, read_plan
from data_prep.sources import CacheOptions, Corpus
from data_prep.sources.hub import HubOptions
from data_prep.sources.hub_address import is_hub_address, parse_address
from data_prep.sources.look import Look
from data_prep.text.captions import CaptionTemplate
from pretrain.dataset.manifest import MANIFEST_FILE, read_manifest

# The libraries whose releases may change a byte of the output.
_LIBRARIES = ("ftfy", "pillow", "sentencepiece", "simplejpeg", "textblob", "tokenizers", "torch")


def describe_request(
    options: BuildOptions, corpus: Corpus, templates: list[CaptionTemplate]
) -> dict[str, Any]:
    """What decides the bytes: source files, options, libraries. No time, no host.

    Files go by name only, so that the same corpus elsewhere gives the same bytes. Columns and
    captions are those that were chosen, whether or not an option said so.
    """
    writer = asdict(options.writer)
    del writer["out"], writer["work"], writer["overwrite"]
    source = {
        **asdict(options.source),
        "format": corpus.format,
        "image_column": corpus.source.image_column,
    }
    # Where it lies decides nothing; what is chosen of a hub stands in an entry of its own.
    for name in (
        "source",
        "image_root",
        *(one.name for kind in (HubOptions, CacheOptions) for one in fields(kind)),
    ):
        del source[name]
    captions = {
        **asdict(options.captions),
        "caption": [
            f"{template.name}={template.template}" for template in templates if not template.entry
        ],
    }
    if all(template.entry is None for template in templates):
        del captions["captions_per_list"]  # decides nothing
    vocabulary = {**asdict(options.vocabulary), "tokenizer": None}
    if options.vocabulary.tokenizer is not None:
        vocabulary["tokenizer"] = Path(options.vocabulary.tokenizer).name
    request = {
        "files": corpus.source.files(),
        "rows_found": corpus.rows,
        "options": {
            "source": source,
            "captions": captions,
            "pictures": asdict(options.pictures),
            "vocabulary": vocabulary,
            "tagging": asdict(options.tagging),
            "writer": writer,
        },
        "libraries": {
            # Without what tells builds of a release apart (2.13.0+cpu): nodes may differ there.
            **{name: version(name).partition("+")[0] for name in _LIBRARIES},
            "libjpeg_turbo": features.version_feature("libjpeg_turbo"),
        },
    }
    if corpus.source.downloads is not None:
        request[DOWNLOADS] = corpus.source.downloads.plain()
    if corpus.hub is not None:
        request[HUB] = corpus.hub
    if corpus.look is not None:
        request[COLUMNS] = corpus.look.columns
    plain: dict[str, Any] = json.loads(json.dumps(request))  # as it reads back from a file
    return plain


def begun_at(options: BuildOptions) -> tuple[str | None, Look | None]:
    """The commit on the hub at which `out` was begun or built from this very address (its branch
    may have moved since), and what was found in the tars. None otherwise, and where it is to be
    built again."""
    source, out = options.source.source, options.writer.folder
    if options.writer.overwrite:
        return None, None
    plan, look = read_plan(out), None
    found = {} if plan is None else plan.request
    if (out / MANIFEST_FILE).exists():
        found = read_manifest(out).provenance
        look = _look_of(found)
    elif plan is not None:
        look = read_look(out)
    if not is_hub_address(source):
        return None, look
    begun: dict[str, str] = found.get(HUB, {})
    if begun.get("address") != str(parse_address(source)):
        return None, None
    return begun["commit"], look


def _look_of(provenance: dict[str, Any]) -> Look | None:
    """As much of what was found in tars as tells a finished build from another."""
    if COLUMNS not in provenance:
        return None
    return Look(
        of={
            "files": provenance["files"],
            "image_column": provenance["options"]["source"]["image_column"],
        },
        rows=provenance["rows_found"],
        columns=provenance[COLUMNS],
        notes=[],
        marks=np.empty((0, 4), np.int64),
    )


def differing(one: Any, other: Any, name: str) -> Iterator[str]:
    """Dotted names of the entries that are not the same."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from differing(one.get(key), other.get(key), f"{name}.{key}" if name else key)
    elif one != other:
        yield name
