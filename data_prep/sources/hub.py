"""Datasets on a hub of Hugging Face's kind: which files are meant, at which commit.

Not by streaming with `datasets`: a place in its stream is not a place in the files that another
process could begin at, and its threads abort the process when a run ends early.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.sources.far import BroughtFiles
from data_prep.sources.folder import describe_suffixes
from data_prep.sources.hub_address import HUB, HubAddress, parse_address
from data_prep.sources.stores import FAR_SUFFIXES, FarFormat
from pretrain.dataset.far_files import FarFile, FarFiles


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """Which part is read of a dataset on the hub"""

    hub_config: str | None = None
    """Configuration (subset) of the dataset, as on its page. Null: the only one, or the default."""
    hub_split: str | None = None
    """Split of the dataset, as on its page. Null: the only one."""


def find_on_hub(
    source: str, options: HubOptions, kind: str | None, commit: str | None, copies: FarFiles
) -> tuple[FarFormat, BroughtFiles]:
    """The files that an address stands for and how they are read.

    commit: that of a build which goes on; None: that which the address's revision has now. copies:
    where files lie while they are needed.
    ValueError names what is not there, or what cannot be read.
    """
    asked = parse_address(source)
    if asked.path and (options.hub_config or options.hub_split):
        raise ValueError(
            f"source={source} names files, hub_config={options.hub_config} and "
            f"hub_split={options.hub_split} choose others: leave out --hub-config and --hub-split, "
            "or the path"
        )
    if kind is not None and kind not in FAR_SUFFIXES.values():
        raise ValueError(
            f"format={kind}: of {asked} only {sorted(FAR_SUFFIXES.values())} are read; leave out "
            "--format, or " + _instead(asked)
        )
    at, there = _look_up(asked, commit)
    chosen = _matching(at, there) if asked.path else _files_of_split(at, options)
    chosen_kind, names, left_alone = _of_one_kind(asked, chosen, kind)
    origin = {"address": str(asked), "commit": at.revision}
    for option in ("hub_config", "hub_split"):
        if (value := getattr(options, option)) is not None:
            origin[option] = value
    return chosen_kind, BroughtFiles(
        found={path: there[path.as_posix()] for path in sorted(map(Path, names))},
        copies=copies,
        place=HUB,
        listed=_Commit(at.revision),  # what lies there does not change
        origin=origin,
        left_alone=left_alone,
    )


class _Commit(str):
    """A commit, that tells itself. A class, as it travels to workers."""

    def __call__(self) -> str:
        return str(self)


def _look_up(asked: HubAddress, commit: str | None) -> tuple[HubAddress, dict[str, FarFile]]:
    """The address at its commit, and all files that are there, by their paths."""
    from huggingface_hub import HfApi, RepoFile
    from huggingface_hub.errors import RevisionNotFoundError

    hub, revision = HfApi(), commit or asked.revision
    with HUB.asking(str(replace(asked, revision=revision))):
        try:
            told = HUB.persistently(lambda: hub.dataset_info(asked.dataset, revision=revision))
        except RevisionNotFoundError as error:
            if commit is None:
                raise
            raise ValueError(
                f"source={asked}: the commit {commit} at which this build was begun is not on the "
                "hub any more; begin it anew with --overwrite"
            ) from error
        assert told.sha is not None
        at = replace(asked, revision=told.sha)
        tree = HUB.persistently(
            lambda: list(
                hub.list_repo_tree(
                    at.dataset, recursive=True, revision=at.revision, repo_type="dataset"
                )
            )
        )
    return at, {
        entry.path: FarFile(
            address=str(replace(at, path=entry.path)),
            bytes=entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else None,  # the others lie in git itself
        )
        for entry in tree
        if isinstance(entry, RepoFile)
    }


def _matching(at: HubAddress, there: dict[str, FarFile]) -> list[str]:
    """The files at a path, below a folder or of a glob pattern. ValueError if there are none."""
    from fsspec.utils import glob_translate

    pattern = re.compile(glob_translate(at.path))
    found = [name for name in there if pattern.match(name) or name.startswith(at.path + "/")]
    if not found:
        folders = sorted({name.rpartition("/")[0] or "." for name in there})
        raise ValueError(
            f"source={at}: no such file, folder or pattern among {len(there):,} files in "
            f"{folders[:8]}; change the path in --source"
        )
    return found


def _files_of_split(at: HubAddress, options: HubOptions) -> list[str]:
    """The files of a configuration's split, as `datasets` finds them (the card's `configs`, or by
    their names). ValueError where one is to be named."""
    import datasets  # slow to import, and needed for this kind of source only

    name = f"source={replace(at, path='')}"
    try:
        with HUB.asking(str(at)):
            builder = datasets.load_dataset_builder(
                at.dataset, name=options.hub_config, revision=at.revision
            )
    except RuntimeError as error:
        if "script" not in str(error):
            raise
        raise ValueError(
            f"{name} is made by a program of its owner's, which is not run here ({error}); "
            + _instead(at)
        ) from error
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        if str(error).startswith("source="):
            raise
        raise ValueError(
            f"{name}, hub_config={options.hub_config}: {error}; name a configuration with "
            "--hub-config, or files in the address"
        ) from error
    splits = builder.config.data_files or {}
    split = options.hub_split or (next(iter(splits)) if len(splits) == 1 else None)
    if split not in splits:
        raise ValueError(
            f"{name}, hub_split={options.hub_split}: there are the splits "
            f"{sorted(map(str, splits))}; name one with --hub-split, or files in the address"
        )
    prefix = f"hf://datasets/{at.dataset}@{at.revision}/"
    files = [str(file) for file in splits[split]]
    elsewhere = next((file for file in files if not file.startswith(prefix)), None)
    if elsewhere is not None:
        raise ValueError(
            f"{name} names the file {elsewhere}, which is not part of it; " + _instead(at)
        )
    return [file.removeprefix(prefix) for file in files]


def _of_one_kind(
    asked: HubAddress, names: list[str], kind: str | None
) -> tuple[FarFormat, list[str], Counter[str]]:
    """The tars or the Parquet files among some, and how many others there are, by suffix.
    ValueError if there are neither, or both and none is named."""
    suffixes = Counter(Path(name).suffix.lower() or name for name in names)
    there = [
        suffix for suffix, told in FAR_SUFFIXES.items() if suffixes[suffix] and kind in (None, told)
    ]
    if not there:
        raise ValueError(
            f"source={asked} holds files of {sorted(suffixes)[:8]}, read are "
            f"{sorted(FAR_SUFFIXES)}; " + _instead(asked)
        )
    if len(there) > 1:
        raise ValueError(
            f"source={asked} holds {describe_suffixes(suffixes)}: name one kind with --format "
            f"{' or '.join(FAR_SUFFIXES.values())}, or by a pattern in the address"
        )
    suffix = there[0]
    del suffixes[suffix]
    return FAR_SUFFIXES[suffix], [n for n in names if n.lower().endswith(suffix)], suffixes


def _instead(asked: HubAddress) -> str:
    """How else a dataset can be read."""
    return (
        f"download it (hf download --repo-type dataset {asked.dataset} --local-dir DIR) and name "
        "DIR with --source, or try the hub's own Parquet of it, "
        f"hf://datasets/{asked.dataset}@refs/convert/parquet"
    )
