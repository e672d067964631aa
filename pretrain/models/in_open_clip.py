"""Which of our models open_clip can be: what its config has no counterpart of."""

from pretrain.models.options import ModelOptions

TEXT_POOL = {"last": "last", "eos": "eos", "highest_id": "argmax"}  # our name -> open_clip's


def inexpressible(shared: ModelOptions) -> list[str]:
    """The options, with their values, that open_clip has no exact counterpart of."""
    image, text = shared.image, shared.text
    hides = text.padding_mask and not (text.causal and text.pool == "eos")
    quick = [tower.gelu == "quick" for tower in (image, text)]
    reasons = {
        f"model.image.pool={image.pool}": image.pool not in ("gap", "cls"),
        f"model.image.cls_token={image.cls_token}": not image.cls_token,
        f"model.image_projection={shared.image_projection}": not shared.image_projection,
        f"model.text_projection_bias={shared.text_projection_bias}": shared.text_projection_bias,
        f"model.text.pool={text.pool}": text.pool not in TEXT_POOL,
        f"model.text.gelu={text.gelu} with model.image.gelu={image.gelu}": any(quick) != all(quick),
        # A causal tower never sees what stands behind its eos, so hiding it changes nothing.
        f"model.text.padding_mask={text.padding_mask}": hides,
    }
    return [option for option, refused in reasons.items() if refused]
