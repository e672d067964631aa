"""A model of open_clip, of the CLIP, CLIPA and SigLIP kinds, by our names: a folder (`local-dir:`)
or the file that its training writes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pretrain.export.foreign import read_config
from pretrain.export.open_clip import CONFIG_FILE, WEIGHTS_FILE, weight_names
from pretrain.export.siglip_tokenizer import siglip_tokenizer
from pretrain.export.source import (
    OUR_RESIZE,
    TOKEN_TABLE,
    ForeignModel,
    check_weights,
    fast_tokenizer,
    other_than,
    refuse,
    square,
    take_from,
)
from pretrain.export.timm_tower import timm_options, timm_weights
from pretrain.models.clip import IMAGE_POSITIONS
from pretrain.models.in_open_clip import TEXT_POOL
from pretrain.models.options import Gelu, ImageTowerOptions, ModelOptions, TextTowerOptions
from pretrain.models.starting import read_tensors
from pretrain.tokens.given import CLIP, read_given
from pretrain.tokens.options import TokenOptions

# In open_clip's own order of preference.
_WEIGHTS = (WEIGHTS_FILE, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
            "open_clip_pytorch_model.pth")  # fmt: skip
_MODEL = {"quick_gelu", "init_logit_scale", "init_logit_bias", "embed_dim", "custom_text",
          "vision_cfg", "text_cfg"}  # fmt: skip
# Read here or by open_clip's tokenizer, or without a part in the function of a finished model.
_READ = {
    "vision_cfg": {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size",
                   "patch_dropout", "no_ln_pre", "pos_embed_type", "final_ln_after_pool",
                   "pool_type", "act_kwargs", "norm_kwargs"},
    "text_cfg": {"context_length", "vocab_size", "hf_tokenizer_name", "tokenizer_mode",
                 "tokenizer_kwargs", "width", "heads", "layers", "mlp_ratio", "pad_id", "eos_id",
                 "no_causal_mask", "pool_type", "act_kwargs", "norm_kwargs", "proj_bias"},
}  # fmt: skip
# All others reach transformers, where one can run the folder's code.
_TOKENIZER_KWARGS = {"clean", "strip_sep_token"}
_IMAGE_POOL = {"tok": "cls", "avg": "gap"}


def read_open_clip(folder: Path) -> ForeignModel:
    """ValueError names what our towers cannot express, or what the folder lacks."""
    path = folder / CONFIG_FILE
    sections = ("model_cfg", "model_cfg.vision_cfg", "model_cfg.text_cfg")
    config = read_config(path, *sections)["model_cfg"]
    shape = _options(config, path)
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} has none of {', '.join(_WEIGHTS)}: put one there")
    text = config["text_cfg"]
    return _read(shape, text, _tensors(file), file, folder, model=f"local-dir:{folder}")


def read_open_clip_file(file: Path, name: str) -> ForeignModel:
    """An epoch_N.pt of open_clip's training. ValueError names the first weight that is not of this
    architecture."""
    import open_clip

    config: Any = open_clip.get_model_config(name)
    shape, theirs = _options(config, file), _tensors(file)
    # Training asks for a bias by --siglip, not by the architecture.
    bias = {"init_logit_bias": 0.0} if "logit_bias" in theirs else {}
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        wanted = kind(**config, **bias).state_dict()
    for weight in (*wanted, *theirs):
        found, due = (
            tuple(side[weight].shape) if weight in side else None for side in (theirs, wanted)
        )
        # Old files hold the mask, a constant; those of one number have one axis, or none.
        if found != due and weight != "attn_mask" and {found, due} != {(), (1,)}:
            raise ValueError(
                f"{file} is no {name}: {weight} is {found or 'not in it'}, {due or 'not there'} "
                "in that architecture; change --open-clip-name"
            )
    text = config["text_cfg"]
    return _read(shape, text, theirs, file, file, model=name, pretrained=str(file), **bias)


def _tensors(file: Path) -> dict[str, Tensor]:
    return {n.removeprefix("module."): w for n, w in read_tensors(file, "SOURCE").items()}


def _read(
    shape: tuple[ModelOptions, TokenOptions, int | None],
    text: dict[str, Any],
    theirs: dict[str, Tensor],
    file: Path,
    source: Path,
    **create: Any,
) -> ForeignModel:
    """By its shape, text_cfg and weights. create: what open_clip's own model is made by."""
    options, tokens, eos_id = shape
    theirs = {n.removeprefix("text."): w for n, w in theirs.items()}
    figures = {"logit_scale": float(take_from(theirs, file)("logit_scale").exp())}
    if "logit_bias" in theirs:
        figures["logit_bias"] = float(theirs.pop("logit_bias"))
    weights = _weights(theirs, options, file)
    check_weights(weights, options, tokens, file)
    return ForeignModel(
        options=options,
        tokens=tokens,
        weights=weights,
        figures=figures,
        **_inputs(source, text, eos_id, siglip=not options.image_projection, **create),
    )


def _options(config: dict[str, Any], path: Path) -> tuple[ModelOptions, TokenOptions, int | None]:
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    vision, text = ({**asdict(kind()), **config[name]} for kind, name in (
        (CLIPVisionCfg, "vision_cfg"), (CLIPTextCfg, "text_cfg")))  # fmt: skip
    is_timm = vision["timm_model_name"] is not None
    _check(config, vision, text, path)
    pools = {theirs: ours for ours, theirs in TEXT_POOL.items()}

    def common(side: dict[str, Any]) -> dict[str, Any]:
        tanh = (side["act_kwargs"] or {}).get("approximate") == "tanh"
        gelu: Gelu = "quick" if config.get("quick_gelu") else "tanh" if tanh else "exact"
        return {
            "width": side["width"],
            "depth": side["layers"],
            "mlp_ratio": side["mlp_ratio"],
            "gelu": gelu,
            "norm_eps": (side["norm_kwargs"] or {}).get("eps", 1e-5),
        }

    if is_timm:
        image = timm_options(vision, config["embed_dim"], path)
    else:
        image = ImageTowerOptions(
            **common(vision),
            heads=vision["width"] // vision["head_width"],
            patch_px=square(vision["patch_size"], "vision_cfg.patch_size", path),
            pool=_IMAGE_POOL[vision["pool_type"]],  # type: ignore[arg-type]
            positions="learned",
            cls_position=True,
            pre_norm=not vision["no_ln_pre"],
            patch_bias=False,
        )
    options = ModelOptions(
        image=image,
        text=TextTowerOptions(
            **common(text),
            heads=text["heads"],
            causal=not text["no_causal_mask"],
            pool=pools[text["pool_type"]],  # type: ignore[arg-type]
            specials="bos_eos",
        ),
        embed_dim=config["embed_dim"],
        image_projection=not is_timm,
        text_projection_bias=text["proj_bias"],
    )
    tokens = TokenOptions(
        image_px=square(vision["image_size"], "vision_cfg.image_size", path),
        text_tokens=text["context_length"],
    )
    return options, tokens, text["eos_id"] if text["pool_type"] == "eos" else None


def _check(
    config: dict[str, Any], vision: dict[str, Any], text: dict[str, Any], path: Path
) -> None:
    """ValueError names each choice that our towers cannot express; a timm tower's are its own."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    refused = [f"model_cfg.{n}={v!r}" for n, v in config.items() if n not in _MODEL]
    if text["hf_model_name"] is not None:
        refused.append(f"text_cfg.hf_model_name={text['hf_model_name']!r}")
    for name, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        rest = {
            n: v
            for n, v in config[name].items()
            if n not in _READ[name] and not n.startswith(("timm_", "hf_", "attn_pooler_"))
        }
        refused += (
            other_than(rest, {**asdict(kind()), "block_type": "default"}, name) if rest else []
        )
    refused += [
        f"text_cfg.tokenizer_kwargs.{n}={v!r}"
        for n, v in (text["tokenizer_kwargs"] or {}).items()
        if n not in _TOKENIZER_KWARGS
    ]
    if isinstance(vision["layers"], list | tuple):
        refused.append(f"vision_cfg.layers={vision['layers']!r}")
    pool = vision["pool_type"]
    if pool not in _IMAGE_POOL and vision["timm_model_name"] is None:
        refused.append(f"vision_cfg.pool_type={pool!r}")
    if pool == "avg" and not vision["final_ln_after_pool"]:
        refused.append("vision_cfg.pool_type='avg' with final_ln_after_pool=False")
    if text["pool_type"] not in TEXT_POOL.values():
        refused.append(f"text_cfg.pool_type={text['pool_type']!r}")
    for name, side in (("vision_cfg", vision), ("text_cfg", text)):
        if set(side["norm_kwargs"] or {}) - {"eps"}:
            refused.append(f"{name}.norm_kwargs={side['norm_kwargs']!r}")
        if (side["act_kwargs"] or {}) not in ({}, {"approximate": "tanh"}, {"approximate": "none"}):
            refused.append(f"{name}.act_kwargs={side['act_kwargs']!r}")
    refuse(path, refused)


def _weights(theirs: dict[str, Tensor], options: ModelOptions, file: Path) -> dict[str, Tensor]:
    """Theirs by our names. ValueError names one that is missing, or that has no place."""
    take = take_from(theirs, file)
    found = {
        TOKEN_TABLE: take("token_embedding.weight"),
        "text.encoder.embeddings.position_embedding.weight": take("positional_embedding"),
    }
    if options.text_projection_bias:
        found |= {f"text_projection.{kind}": take(f"text_projection.{kind}")
                  for kind in ("weight", "bias")}  # fmt: skip
    else:
        found["text_projection.weight"] = take("text_projection").T.contiguous()
    names = weight_names(options)
    if options.image_projection:
        found |= {
            "image.vit.patch_embed.proj.weight": take("visual.conv1.weight"),
            "image.vit.cls_token": take("visual.class_embedding")[None, None],
            IMAGE_POSITIONS: take("visual.positional_embedding"),
            "image_projection.weight": take("visual.proj").T.contiguous(),
        }
    else:
        found |= timm_weights(theirs, take)
        names = {name: ours for name, ours in names.items() if not name.startswith("visual.")}
    for name, ours in names.items():
        found.update(zip(ours, (t.clone() for t in take(name).chunk(len(ours))), strict=True))
    theirs.pop("attn_mask", None)  # a constant that old files hold
    if theirs:
        refuse(file, [f"weight {min(theirs)}"])
    return found


def _inputs(
    folder: Path,
    text: dict[str, Any],
    eos_id: int | None,
    *,
    siglip: bool,
    model: str,
    **create: Any,
) -> dict[str, Any]:
    """The source's own model, pixels and ids, and what of them our folder records."""
    import open_clip

    made, _, prepare = open_clip.create_model_and_transforms(model, weights_only=True, **create)
    made.eval()
    # A tokenizer without a name is open_clip's own, which has no such option.
    runs_no_code = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
    theirs: Any = open_clip.get_tokenizer(model, **runs_no_code)
    if isinstance(theirs, open_clip.SimpleTokenizer):
        content, found_eos = read_given(CLIP, None), theirs.eot_token_id
    else:
        cleaning = (text.get("tokenizer_kwargs") or {}).get("clean")
        content = (
            siglip_tokenizer(theirs.tokenizer, folder, canonical=cleaning == "canonicalize")
            if siglip
            else fast_tokenizer(theirs.tokenizer, folder)
        )
        found_eos = theirs.tokenizer.eos_token_id
    if eos_id is not None and eos_id != found_eos:
        refuse(folder, [f"text_cfg.eos_id={eos_id} with a tokenizer whose eos is {found_eos}"])

    def embed(pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return made.encode_image(pixels, normalize=True), made.encode_text(ids, normalize=True)

    def pixels(pictures: list[Image.Image]) -> Tensor:
        return torch.stack([prepare(picture) for picture in pictures])

    how = made.visual.preprocess_cfg
    ours = (how["resize_mode"], how["interpolation"]) == ("shortest", "bicubic")
    return {
        "tokenizer": content,
        "mean": tuple(how["mean"]),
        "std": tuple(how["std"]),
        "resize": OUR_RESIZE if ours else f"{how['resize_mode']}, {how['interpolation']}",
        "prepare": pixels,
        "tokenize": theirs,
        "embed": embed,
    }
