"""Starting weights: a tower out of timm's or transformers' files computes what that library does,
and what does not fit is named before anything starts."""

import pickle

import pytest
import timm
import torch
from commands import export
from forked_runs import train
from safetensors.torch import load_file, save_file
from tiny_runs import ROOT
from transformers import CLIPConfig, CLIPModel, SiglipTextConfig, SiglipTextModel
from vocabularies import of_size

from pretrain.models.clip import CLIP
from pretrain.models.options import ImageTowerOptions, ModelOptions, StartOptions, TextTowerOptions
from pretrain.models.starting import load_start
from pretrain.run.stage_weights import read_stage_weights

STOCK = {"pool": "cls", "positions": "learned", "pre_norm": True}


def timm_tower(image_px: int = 32, **more):
    torch.manual_seed(1)
    options = {"pre_norm": True, "norm_layer": "layernorm", "num_classes": 7, **more}
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=image_px, patch_size=8, embed_dim=32, depth=2,
        num_heads=2, **options,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def our_clip(image_px: int = 32, text_tokens: int = 6, *, causal: bool = True, **image) -> CLIP:
    torch.manual_seed(0)
    choices = {"gelu": "exact", "norm_eps": 1e-6, **STOCK, **image}
    text = {"causal": True, "pool": "highest_id", "specials": "bos_eos"} if causal else {}
    return CLIP(
        ModelOptions(
            image=ImageTowerOptions(width=32, depth=2, heads=2, patch_px=8, **choices),
            text=TextTowerOptions(width=32, depth=2, heads=2, gelu="quick", **text),
            embed_dim=16,
        ),
        vocabulary=of_size(50),
        image_px=image_px,
        text_tokens=text_tokens,
        explicit_attention=True,
    ).eval()


@pytest.mark.parametrize("cls_position", [False, True])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped"])
@torch.no_grad()
def test_the_image_tower_is_timms(tmp_path, kind, cls_position):
    theirs, ours = timm_tower(), our_clip(cls_position=cls_position)
    path = tmp_path / ("tower.safetensors" if kind == "safetensors" else "tower.pth")
    weights = {name: value.contiguous() for name, value in theirs.state_dict().items()}
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save({"epoch": 3, "state_dict": weights} if kind == "wrapped" else weights, path)
    untouched = {n: w.clone() for n, w in ours.state_dict().items() if not n.startswith("image.")}
    assert load_start(StartOptions(image=path), ours) == {}
    images = torch.randn(3, 3, 32, 32)
    expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    worst = float((ours.image(images) - expected).abs().max())
    assert worst < 1e-5, f"features differ by {worst}"
    assert all(torch.equal(ours.state_dict()[name], weight) for name, weight in untouched.items())


@torch.no_grad()
def test_positions_are_resized_as_timm_does(tmp_path):
    theirs, ours = timm_tower(), our_clip(image_px=48)
    save_file(theirs.state_dict(), tmp_path / "tower.safetensors")
    load_start(StartOptions(image=tmp_path / "tower.safetensors"), ours)
    theirs.set_input_size(img_size=(48, 48))
    images = torch.randn(3, 3, 48, 48)
    expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    worst = float((ours.image(images) - expected).abs().max())
    assert worst < 1e-5, f"features differ by {worst}"


@torch.no_grad()
def test_the_text_tower_is_transformers(tmp_path):
    ids = torch.tensor([[1, 7, 9, 49, 0, 0], [1, 5, 6, 7, 8, 49]])
    shape = dict(
        vocab_size=50, hidden_size=32, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=6, layer_norm_eps=1e-5,
        hidden_act="quick_gelu", pad_token_id=0, bos_token_id=1, eos_token_id=49,
    )  # fmt: skip
    torch.manual_seed(2)
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
                  image_size=32, patch_size=16)  # fmt: skip
    clip = CLIPModel(CLIPConfig(text_config=shape, vision_config=vision)).eval()
    clip.save_pretrained(tmp_path / "clip")
    bidirectional = SiglipTextModel(SiglipTextConfig(**shape, projection_size=16)).eval()
    bidirectional.save_pretrained(tmp_path / "siglip")
    for folder, theirs, causal in (
        ("clip", clip.text_model, True), ("siglip", bidirectional, False),
    ):  # fmt: skip
        ours = our_clip(causal=causal)
        before = ours.image.state_dict()["vit.cls_token"].clone()
        load_start(StartOptions(text=tmp_path / folder / "model.safetensors"), ours)
        expected = theirs(input_ids=ids).last_hidden_state
        worst = float((ours.text.hidden_states(ids, None) - expected).abs().max())
        assert worst < 1e-5, f"{folder}: hidden states differ by {worst}"
        assert torch.equal(ours.image.state_dict()["vit.cls_token"], before)


def test_what_does_not_fit_is_named_with_its_option(tmp_path):
    path = tmp_path / "tower.safetensors"
    save_file(timm_tower().state_dict(), path)

    def refusal(**image) -> str:
        with pytest.raises(ValueError) as caught:
            load_start(StartOptions(image=path), our_clip(**image))
        assert "\n" not in str(caught.value) and "start.image" in str(caught.value)
        return str(caught.value)

    assert "has image.vit.norm_pre." in (told := refusal(pre_norm=False, patch_bias=False))
    assert "check model.image.pre_norm" in told
    assert "lacks image.vit.fc_norm.weight: check model.image.pool" in refusal(pool="gap")
    assert "lacks image.vit.patch_embed.proj.bias" in refusal(patch_bias=True)
    assert "set it to learned" in refusal(positions="sincos")
    told = refusal(mlp_ratio=2.0)
    assert "blocks.0.mlp.fc1.bias is (128,), this model's (64,): check model.image.width" in told


class Harmful:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_pickle_that_needs_code_is_refused(tmp_path, capsys):
    path = tmp_path / "tower.pth"
    torch.save({"state_dict": timm_tower().state_dict(), "args": Harmful()}, path)
    with pytest.raises(ValueError, match=r"start\.image=.*would run code.*safetensors"):
        load_start(StartOptions(image=path), our_clip())
    with path.open("wb") as file:
        pickle.dump({"weights": Harmful()}, file)
    with pytest.raises(ValueError, match=r"start\.image="):
        load_start(StartOptions(image=path), our_clip())
    assert "this ran" not in capsys.readouterr().out


def test_a_run_starts_from_an_export(tiny_run, tiny_dataset, tmp_path):
    export(run_dir=tiny_run, out=tmp_path / "model")
    start = ["--start.export", str(tmp_path / "model")]
    # A rate of nothing: the first stage's weights are those that it started from.
    still = ["--stages.full.base_learning_rate", "1e-30", "--stages.reduced.base_learning_rate",
             "1e-30", "--checkpoint.every_steps", "2"]  # fmt: skip
    ended = train(tmp_path / "run", tiny_dataset, *start, *still)
    assert ended.code == 0, ended.output
    ours, objective = read_stage_weights(tmp_path / "run", "full")
    theirs, own = read_stage_weights(tiny_run, "full")
    same = [name for name in theirs if torch.equal(ours[name], theirs[name])]
    assert set(same) >= {name for name in theirs if "position" not in name}, set(theirs) - set(same)
    assert torch.allclose(objective["log_scale"], own["log_scale"], atol=1e-6)
    assert load_file(str(tmp_path / "model/model.safetensors")).keys() == theirs.keys()

    refused = train(tmp_path / "other", tiny_dataset, *start, "--model.image.pool", "cls")
    assert refused.code == 2 and "start.export=" in refused.output, refused.output
    assert "check model.image.pool" in refused.output


def test_a_start_has_one_source():
    from pretrain.recipe.parsing import parse

    tiny = ["--config", str(ROOT / "pretrain/recipes/tiny.yaml")]
    with pytest.raises(ValueError, match=r"start\.export=a is a whole model"):
        parse([*tiny, "--start.export", "a", "--start.image", "b"])
    with pytest.raises(ValueError, match="did you mean 'image'"):
        parse([*tiny, "--start.imag", "b"])
