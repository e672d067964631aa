"""A foreign model as this package sees it: its function by our options, and its own library's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from pretrain.models.options import ModelOptions
from pretrain.plan.flops import meta_model
from pretrain.tokens.given import complete
from pretrain.tokens.json_tokenizer import check_ids
from pretrain.tokens.options import TokenOptions

TOKEN_TABLE = "text.encoder.embeddings.token_embedding.weight"


@dataclass(frozen=True, kw_only=True)
class ForeignModel:
    """What a reader of a foreign folder finds."""

    options: ModelOptions
    """Of the same function; text.specials is still to be found by comparing ids."""
    tokens: TokenOptions
    """Picture size and context length."""
    weights: dict[str, Tensor]
    """By our names, fp32."""
    figures: dict[str, float]
    """logit_scale, and logit_bias where there is one."""
    tokenizer: bytes
    """Content of a tokenizer file of ours."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str
    """How pictures become squares, in the source's words; OUR_RESIZE where it is our way."""
    prepare: Callable[[list[Image.Image]], Tensor]
    """(B, 3, H, W): the source's own pixels."""
    tokenize: Callable[[list[str]], Tensor]
    """(B, T): the source's own ids."""
    embed: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(B, E) unit vectors of pixels and of ids, by the source's library."""


OUR_RESIZE = "shortest side, centre square, bicubic"


def refuse(path: Path, choices: list[str]) -> None:
    """ValueError names the choices of a source that our towers have no counterpart of."""
    if choices:
        raise ValueError(
            f"{path} cannot be expressed exactly by this package's towers: {', '.join(choices)}; "
            "convert a model without"
        )


def take_from(weights: dict[str, Tensor], file: Path) -> Callable[[str], Tensor]:
    """What takes a weight out of those of a file, in fp32; ValueError names one that is missing."""

    def take(name: str) -> Tensor:
        if name not in weights:
            raise ValueError(
                f"{file} lacks {name}, which its configuration asks for: get the whole model again"
            )
        return weights.pop(name).float()

    return take


def check_weights(
    weights: dict[str, Tensor], options: ModelOptions, tokens: TokenOptions, file: Path
) -> None:
    """ValueError names one of our towers' weights that a file's, by our names, do not give, or
    give in another shape or without finite values."""
    model = meta_model(options, tokens, len(weights[TOKEN_TABLE]))
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(weights))
    if missing:
        raise ValueError(
            f"{file} lacks {len(missing)} weights, {missing[0]} by our name first, which its "
            "configuration asks for: get the whole model again"
        )
    for name, weight in weights.items():
        if name in wanted and weight.shape != wanted[name].shape:
            raise ValueError(
                f"{file}: {name}, by our name, is {tuple(weight.shape)}, its configuration asks "
                f"for {tuple(wanted[name].shape)}: get the whole model again"
            )
        if not weight.isfinite().all():
            raise ValueError(
                f"{file}: {name}, by our name, is not finite: its training diverged, or the file "
                "is damaged"
            )


def other_than(found: dict[str, Any], neutral: dict[str, Any], section: str) -> list[str]:
    """`section.name=value` of every value that is not the neutral one, or that nobody knows."""
    return [
        f"{section}.{name}={value!r}"
        for name, value in found.items()
        if name not in neutral or value != neutral[name]
    ]


def square(value: Any, name: str, path: Path) -> int:
    """The side of a picture or patch that is given as a number or as two equal ones."""
    sides = value if isinstance(value, list | tuple) else [value]
    if len(set(sides)) != 1:
        refuse(path, [f"{name}={value!r}"])
    return int(sides[0])


def fast_tokenizer(theirs: Any, path: Path) -> bytes:
    """A transformers tokenizer as a file of ours. ValueError says what it lacks."""
    backend = getattr(theirs, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"{path}: its {type(theirs).__name__} has no tokenizer.json; put one beside the weights"
        )
    check_ids(backend, path)
    bos, eos = theirs.bos_token or theirs.cls_token, theirs.eos_token or theirs.sep_token
    pad = theirs.pad_token
    if pad in (bos, eos):
        # Harmless where nothing sees it, which comparing the embeddings shows.
        pad = theirs.convert_ids_to_tokens(0)
    if None in (pad, bos, eos) or len({pad, bos, eos}) < 3:
        raise ValueError(
            f"{path}: its tokenizer has pad {pad!r}, bos {bos!r}, eos {eos!r}; three different "
            "tokens are needed: write them into its tokenizer_config.json"
        )
    return complete(path, backend.to_str().encode(), f"{pad},{bos},{eos}")
