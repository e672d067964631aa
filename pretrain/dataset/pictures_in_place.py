"""Where the tars of anyone's making lie whose pictures a dataset has in place: pictures_root.txt.

One line, UTF-8: the tars' folder, absolute or relative to the dataset directory. It stands beside
the manifest, not in it, so that tars can move and the dataset stays the same.
"""

from pathlib import Path

from pretrain.dataset.manifest import PICTURES_ROOT_FILE, PicturesInfo, TierInfo


def read_pictures_root(dataset_dir: Path) -> Path:
    """The folder of a dataset's tars; ValueError says what to write where none is named."""
    path = dataset_dir / PICTURES_ROOT_FILE
    try:
        line = path.read_text(encoding="utf-8").removesuffix("\n")
    except (FileNotFoundError, UnicodeDecodeError):
        line = ""
    if not line or "\n" in line or "\0" in line or not (root := dataset_dir / line).is_dir():
        raise ValueError(
            f"{path} names {line!r}, no folder: write the one of the tars that were indexed into "
            f"it, absolute or relative to {dataset_dir}"
        )
    return root


def pictures_path(root: Path, told: PicturesInfo) -> Path:
    """A tar below the root; ValueError for a name that leads elsewhere.

    Symbolic links are followed: the root's owner made them (huggingface_hub's cache is of links).
    """
    name = Path(told.file)
    if "\0" in told.file or name.is_absolute() or ".." in name.parts:
        raise ValueError(
            f"the manifest names a tar {told.file!r}, which is not below {root}: index it again"
        )
    return root / name


def check_pictures(root: Path, told: PicturesInfo) -> Path:
    """The same, there and of its size; ValueError otherwise."""
    path = pictures_path(root, told)
    size = path.stat().st_size if path.is_file() else None
    if size != told.bytes:
        raise ValueError(
            f"{path} has {size} bytes, {told.bytes} when it was indexed: it changed or is missing; "
            f"put it back, name its folder in {PICTURES_ROOT_FILE}, or run `python -m data_prep "
            "index` again"
        )
    return path


def find_pictures(dataset_dir: Path, tier: TierInfo, looks: bool) -> list[str]:
    """Of each shard of a tier in place, the tar of its pictures; its size is checked if `looks`."""
    root = read_pictures_root(dataset_dir)
    find = check_pictures if looks else pictures_path
    tars = {told: str(find(root, told)) for told in {s.pictures for s in tier.shards} if told}
    return [tars[shard.pictures] for shard in tier.shards if shard.pictures]
