"""Small dataset directories from the embedded corpus."""

from pathlib import Path

from data_prep.__main__ import main as data_prep

CORPUS = Path(__file__).resolve().parents[2] / "data_prep/demo_corpus/emoji.parquet"


def build_food(out: Path, where: str, *more: str) -> Path:
    """Drawings of food that `where` picks, with three captions each, in shards of 60."""
    captions = [
        "label={caption}",
        "keywords={caption}, {keywords}",
        "phrase=a drawing of {caption}",
    ]
    status = data_prep(
        [
            *("build", "--source", str(CORPUS), "--out", str(out), "--tiers", "full:95"),
            *("--where", f"\"group\" = 'food & drink' AND {where}", "--vocab-size", "400"),
            *(word for caption in captions for word in ("--caption", caption)),
            *("--byte-fallback", "false", "--shard-samples", "60", *more),
        ]
    )
    assert status == 0
    return out
