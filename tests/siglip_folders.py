"""Small random SigLIP models as their own libraries save them."""

from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import (
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipTextConfig,
    SiglipTokenizer,
    SiglipVisionConfig,
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


@torch.no_grad()
def stir(model: torch.nn.Module) -> None:
    """Random norms and biases too, which start at one and zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))


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
