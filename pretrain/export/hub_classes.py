"""What transformers loads from an exported folder: configuration, model, picture and text input.

This module is never imported by the package: with all of ours that it uses it becomes one file in
the folder. The towers have no exact counterpart among transformers' models (CLIPModel pools its
text at the highest id where eos is 2, SiglipModel has no mean of patches and no CLS).
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import make_flat_list_of_images
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPOutput

from pretrain.batches.images import evaluation_pixels
from pretrain.dataset.pictures import upright_rgb
from pretrain.models.clip import CLIP, read_model_options
from pretrain.models.positions import sincos_2d
from pretrain.tokens.vocabulary import Vocabulary


class ClipaConfig(transformers.PretrainedConfig):
    """Shape of the towers, sizes of their inputs, temperature."""

    model_type = "clipa"

    def __init__(self, model: Any = None, **values: Any) -> None:
        self.model = model
        super().__init__(**values)


class ClipaModel(transformers.PreTrainedModel):
    """CLIP with CLIPA's towers. Its weights are named as the exporting package names them."""

    config_class = ClipaConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config: ClipaConfig) -> None:
        super().__init__(config)
        clip = CLIP(
            read_model_options(config.model),
            vocabulary=Vocabulary(**config.vocabulary),
            image_px=config.image_px,
            text_tokens=config.text_tokens,
            explicit_attention=False,
        )
        for name, part in clip.named_children():
            self.add_module(name, part)
        self.post_init()

    # CLIP's own, on the parts that it shares with this.
    encode_image: Any = CLIP.encode_image
    encode_text: Any = CLIP.encode_text

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Tables that are no weights: transformers builds the model without them."""
        tables = dict(module.named_buffers(recurse=False))
        if "positions" in tables:
            grid = round(len(tables["positions"]) ** 0.5)
            with torch.device("cpu"):
                jax = self.config.model["image"].get("positions") == "sincos_jax"
                table = sincos_2d(tables["positions"].shape[1], grid, jax=jax)
            tables["positions"].copy_(table)
        if "position_ids" in tables:
            tables["position_ids"].copy_(torch.arange(tables["position_ids"].shape[-1])[None])

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """pixel_values (B, 3, H, W) of the folder's image processor; pooler_output (B, E), unit."""
        return BaseModelOutputWithPooling(
            pooler_output=self.encode_image(pixel_values.to(self.dtype))
        )

    def get_text_features(self, input_ids: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """input_ids of the folder's tokenizer, of any length; pooler_output (B, E), unit norm."""
        return BaseModelOutputWithPooling(pooler_output=self.encode_text(self._fit(input_ids)))

    def _fit(self, ids: Tensor) -> Tensor:
        """Ids at the model's context length: padded, or cut with the eos that was cut put back."""
        tokens, vocabulary = self.config.text_tokens, Vocabulary(**self.config.vocabulary)
        if ids.shape[1] > tokens:
            # From the last that stays: the eos behind it may be the padding's id.
            longer = (ids[:, tokens - 1 :] != vocabulary.pad_id).any(dim=1)
            ids = ids[:, :tokens].clone()
            if self.config.model["text"]["specials"] != "bos":
                ids[longer, -1] = vocabulary.eos_id
        return F.pad(ids, (0, tokens - ids.shape[1]), value=vocabulary.pad_id)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> CLIPOutput:
        """Similarities of every picture with every text, by the trained temperature."""
        images = self.encode_image(pixel_values.to(self.dtype))
        texts = self.encode_text(self._fit(input_ids))
        bias = getattr(self.config, "logit_bias", 0.0)  # the softmax loss has none
        logits = self.config.logit_scale * texts @ images.T + bias
        return CLIPOutput(
            logits_per_image=logits.T,
            logits_per_text=logits,
            text_embeds=texts,
            image_embeds=images,
        )


class ClipaImageProcessor(BaseImageProcessor):
    """Pictures as the training saw them: upright, white under transparency, the centre square."""

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        image_px: int = 224,
        image_mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        image_std: tuple[float, ...] = (1.0, 1.0, 1.0),
        **values: Any,
    ) -> None:
        super().__init__(**values)
        self.image_px, self.image_mean, self.image_std = image_px, image_mean, image_std

    def __call__(self, images: Any, *_: Any, **__: Any) -> Any:
        """PIL pictures of any mode, or uint8 arrays (H, W, 3) → pixel_values (B, 3, H, W) fp32."""
        import numpy as np
        from PIL import Image

        rows = []
        for image in cast(list[Any], make_flat_list_of_images(images)):
            picture = (
                image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
            )
            square = evaluation_pixels(np.asarray(upright_rgb(picture)), self.image_px)
            rows.append(torch.from_numpy(np.ascontiguousarray(square.transpose(2, 0, 1))))
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.image_mean, self.image_std))
        return transformers.BatchFeature(
            {"pixel_values": (torch.stack(rows).float() / 255 - mean) / std}
        )

    preprocess: Any = __call__


class ClipaProcessor(transformers.ProcessorMixin):
    """Pictures and texts together."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **_: Any) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(self, images: Any = None, text: Any = None, **values: Any) -> Any:
        """`text` is padded and cut to the model's context unless told otherwise."""
        values.pop("return_tensors", None)
        out = {}
        if text is not None:
            length = {"padding": "max_length", "truncation": True, **values}
            out.update(self.tokenizer(text, return_tensors="pt", **length))
        if images is not None:
            out.update(self.image_processor(images))
        return transformers.BatchFeature(out)
