"""Small random SigLIP models as their own libraries save them."""

import json
from pathlib import Path
from typing import Any

import open_clip
import sentencepiece
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from tiny_models import stir
from transformers import (
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipTokenizer,
    SiglipVisionConfig,
    T5Tokenizer,
)

SENTENCES = [
    "a red apple lies on a wooden table", "two cups of tea beside an open book",
    "the dog sleeps under a tree in the garden", "children play football on the beach",
    "an old photograph of a steam train in winter", "a woman reads the news on her phone",
    "fresh bread and cheese at the market", "a map of the city with all its bridges",
]  # fmt: skip
TEXT_TOKENS = 24


def pieces(folder: Path) -> Path:
    """A unigram model with SigLIP's special ids: padding 0 unused, end 1, unknown 2."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sentences.txt").write_text("\n".join(SENTENCES * 4))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "sentences.txt"), model_prefix=str(folder / "spiece"), vocab_size=120,
        model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    (folder / "sentences.txt").unlink()
    (folder / "spiece.vocab").unlink()
    return folder / "spiece.model"


def a_siglip_folder(folder: Path, **vision: Any) -> Path:
    """transformers' SiglipModel with all that its hub folders hold."""
    tokenizer = SiglipTokenizer(str(pieces(folder)), model_max_length=TEXT_TOKENS)
    tokenizer.save_pretrained(folder)
    shape: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
    config = SiglipConfig(
        text_config=SiglipTextConfig(
            **shape, intermediate_size=64, max_position_embeddings=TEXT_TOKENS,
            vocab_size=len(tokenizer), pad_token_id=1, bos_token_id=2, eos_token_id=1,
        ),
        vision_config=SiglipVisionConfig(
            **{**shape, "intermediate_size": 99, "image_size": 32, "patch_size": 8, **vision}
        ),
    )  # fmt: skip
    model = SiglipModel(config)
    stir(model)
    with torch.no_grad():
        model.logit_scale.fill_(2.3)
        model.logit_bias.fill_(-10.5)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@timm.models.register_model
def vit_small_random_siglip(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """As timm builds vit_base_patch16_siglip_224, smaller."""
    options.pop("pretrained_cfg", None), options.pop("pretrained_cfg_overlay", None)
    options.pop("cache_dir", None)
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=99 / 32,
        class_token=False, **options,
    )  # fmt: skip


def an_open_clip_siglip_folder(folder: Path, **vision: Any) -> Path:
    """open_clip's, of its ViT-B-16-SigLIP.json in small, with a T5 tokenizer of the same pieces."""
    model_file = pieces(folder)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    size = processor.vocab_size()
    T5Tokenizer(
        vocab=[(processor.id_to_piece(i), processor.get_score(i)) for i in range(size)],
        extra_ids=0, pad_token="</s>",
    ).save_pretrained(folder)  # fmt: skip
    model_file.unlink()
    config: dict[str, Any] = {
        "embed_dim": 32,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "timm_model_name": "vit_small_random_siglip",
                       "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none",
                       **vision},
        "text_cfg": {"context_length": TEXT_TOKENS, "vocab_size": size, "width": 48, "heads": 2,
                     "hf_tokenizer_name": "local-dir", "layers": 2, "no_causal_mask": True,
                     "tokenizer_kwargs": {"clean": "canonicalize"}, "proj_bias": True,
                     "pool_type": "last", "norm_kwargs": {"eps": 1e-6}},
    }  # fmt: skip
    model = open_clip.CustomTextCLIP(
        config["embed_dim"], config["vision_cfg"],
        {n: v for n, v in config["text_cfg"].items() if "tokenizer" not in n},
        init_logit_bias=config["init_logit_bias"],
    )  # fmt: skip
    stir(model)
    save_file({n: w.contiguous() for n, w in model.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    prepare = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
               "resize_mode": "squash"}  # fmt: skip
    content = {"model_cfg": config, "preprocess_cfg": prepare}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return folder
