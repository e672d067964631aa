"""A conversion runs no code of the folder, and one that is refused says why on one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from siglip_folders import a_siglip_folder
from test_convert import CLIPA, a_clip_model_folder, an_open_clip_folder, changed
from transformers import AutoTokenizer

from pretrain.export import importing
from pretrain.export.importing import convert

OPEN_CLIP, CONFIG = "open_clip_config.json", "config.json"


def edit(path: Path, **values) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **values}))


def set_trap(folder: Path, marker: Path) -> dict[str, list[str]]:
    """A tokenizer class in the folder that leaves a file behind when it is imported."""
    (folder / "eviltok.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class Evil(PreTrainedTokenizerFast):\n    pass\n"
    )
    return {"AutoTokenizer": ["eviltok.Evil", "eviltok.Evil"]}


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}


def refused(source: Path, out: Path, *told: str) -> None:
    """Refused on one line, with nothing changed in `out` or beside it."""
    before, beside = contents(out), sorted(out.parent.iterdir())
    with pytest.raises((ValueError, OSError)) as raised:
        convert(source, out)
    line = str(raised.value)
    assert "\n" not in line and not [part for part in told if part not in line], line
    assert contents(out) == before and sorted(out.parent.iterdir()) == beside


def test_the_trap_works(tmp_path):
    source = an_open_clip_folder(tmp_path / "source", CLIPA)
    edit(source / "tokenizer_config.json", auto_map=set_trap(source, tmp_path / "ran"))
    AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("keyword", ["trust_remote_code", "use_fast", "tokenizer_file"])
def test_a_tokenizer_option_that_could_run_code_is_refused(keyword, tmp_path):
    config = changed("text_cfg", tokenizer_kwargs={keyword: True})
    source = an_open_clip_folder(tmp_path / "source", config)
    if keyword == "trust_remote_code":
        edit(source / "tokenizer_config.json", auto_map=set_trap(source, tmp_path / "ran"))
    refused(source, tmp_path / "out", OPEN_CLIP, f"{keyword}=True")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
@pytest.mark.parametrize(
    "file", [CONFIG, "tokenizer_config.json", "preprocessor_config.json", "more/config.json"]
)
def test_a_folder_that_names_code_is_refused_before_a_library_reads_it(
    kind, file, tmp_path, monkeypatch
):
    source = tmp_path / "source"
    if kind == "open_clip":
        an_open_clip_folder(source, CLIPA)
    elif kind == "clip":
        a_clip_model_folder(source, 513)
    else:
        a_siglip_folder(source)
    (source / "more").mkdir()
    edit(source / file, deep=[{"auto_map": set_trap(source, tmp_path / "ran")}])
    for reader in ("read_open_clip", "read_transformers"):
        monkeypatch.setattr(importing, reader, lambda folder: pytest.fail("read"))
    refused(source, tmp_path / "out", f"source/{file} has auto_map=")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"auto_map": {"AutoTokenizer": "a.B"}, "auto_map": null}', "auto_map="),  # given twice
        ('{"x": {"trust_remote_code": true}}', "trust_remote_code=True"),
        ('{"attn_implementation": "someone/kernel"}', "attn_implementation='someone/kernel'"),
    ],
)
def test_other_ways_to_name_code(text, told, tmp_path):
    source = a_clip_model_folder(tmp_path / "source", 513)
    (source / "other.json").write_text(text)
    refused(source, tmp_path / "out", f"source/other.json has {told}")


@pytest.mark.parametrize("tower", ["text", "vision"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tower, value, tmp_path):
    source = a_clip_model_folder(tmp_path / "source", 513)
    assert convert(source, tmp_path / "out")[0] < 1e-5
    good = load_file(source / "model.safetensors")
    weights = {name: weight.clone() for name, weight in good.items()}
    for name in (n for n in weights if n.startswith(f"{tower}_model.") and n.endswith("bias")):
        weights[name].fill_(value)
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    ours = {"text": "text.encoder.", "vision": "image.vit."}[tower]
    # The good one of before stays, byte by byte.
    refused(source, tmp_path / "out", "model.safetensors: " + ours, "is not finite")
    good["logit_scale"].fill_(value)
    save_file(good, source / "model.safetensors", {"format": "pt"})
    refused(source, tmp_path / "out", "its logit_scale is", "not finite")


def test_what_raises_while_it_is_judged_leaves_no_model(tmp_path, monkeypatch):
    source, out = a_clip_model_folder(tmp_path / "source", 513), tmp_path / "new" / "out"
    out.parent.mkdir()
    fault: BaseException

    def load(folder):
        assert folder != out and (folder / "model.safetensors").is_file() and not out.exists()
        raise fault if not isinstance(fault, ValueError) else ValueError(f"{folder} is bad")

    monkeypatch.setattr(importing, "load", load)
    fault = ValueError()
    refused(source, out, f"{out} is bad")
    fault = RuntimeError("two\nlines")
    refused(source, out, f"{source / CONFIG}", "RuntimeError: two lines")
    fault = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        convert(source, out)
    assert not list(out.parent.iterdir())


def test_an_export_of_this_package_is_told_apart(tmp_path):
    convert(a_clip_model_folder(tmp_path / "source", 513), tmp_path / "ours")
    refused(tmp_path / "ours", tmp_path / "out", "an export of this package already")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is not a folder"):
        convert(tmp_path / "source", tmp_path / "file")


def test_an_earlier_model_is_replaced_and_other_files_stay(tmp_path):
    source, out = a_clip_model_folder(tmp_path / "source", 513), tmp_path / "out"
    convert(source, out)
    (out / "image.onnx").write_text("of the earlier model")
    (out / "notes.txt").write_text("mine")
    weights = load_file(source / "model.safetensors")
    weights["visual_projection.weight"] *= 2
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    convert(source, out)
    assert sorted(contents(out)) == sorted(
        ["config.json", "model.safetensors", "notes.txt", "recipe.yaml", "text.tokenizer"]
    )
    found = load_file(out / "model.safetensors")["image_projection.weight"]
    assert torch.equal(found, weights["visual_projection.weight"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def with_text(**values) -> str:
    return json.dumps({"model_cfg": changed("text_cfg", **values)})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not readable JSON"),
        ('{"model_cfg": {', "not readable JSON"),
        ("\x00\x01", "not readable JSON"),
        ("[" * 20_000, "nested too deeply"),
        ("1" * 5000, "not readable JSON"),
        ("null", "is None"),
        ("[]", "is []"),
        ("{}", "model_cfg is None"),
        ('{"model_cfg": []}', "model_cfg is []"),
        ('{"model_cfg": {"vision_cfg": {}, "text_cfg": null}}', "model_cfg.text_cfg is None"),
        (json.dumps({"model_cfg": {"vision_cfg": {}, "text_cfg": {}}}), "embed_dim"),
        (with_text(layers="2"), "text_cfg.layers='2'"),
        (with_text(layers=10_000_000), "text_cfg.layers=10000000"),
        (with_text(width=None), "text_cfg.width=None"),
        (with_text(context_length=1_000_000_000), "context_length=1000000000"),
        (with_text(heads=0), "text_cfg.heads=0"),
        (with_text(heads=7), "heads"),
        (with_text(pool_type=[]), "pool_type"),
        (with_text(norm_kwargs=3), ""),
        (with_text(norm_kwargs={"eps": "x"}), ""),
        (with_text(tokenizer_kwargs=[1]), ""),
        (with_text(width=64), "(300, 48)"),
        (json.dumps({"model_cfg": CLIPA, "preprocess_cfg": {"mean": "x"}}), ""),
        (json.dumps({"model_cfg": CLIPA, "preprocess_cfg": 5}), ""),
    ],
)
def test_an_open_clip_config_that_is_none_is_one_line(text, told, tmp_path):
    source = an_open_clip_folder(tmp_path / "source", CLIPA)
    (source / OPEN_CLIP).write_text(text)
    refused(source, tmp_path / "out", str(source), told)


@pytest.mark.parametrize(
    ("file", "values", "told"),
    [
        (CONFIG, [], "is []"),
        (CONFIG, {"vision_config": None}, "vision_config is None"),
        (CONFIG, {"projection_dim": 32}, "(24, 32)"),
        (CONFIG, {"projection_dim": "24"}, "projection_dim='24'"),
        (CONFIG, {"text_config": {"hidden_size": 1e300}}, "text_config.hidden_size=1e+300"),
        ("preprocessor_config.json", [], ""),
        ("preprocessor_config.json", {"image_mean": None}, ""),
        ("preprocessor_config.json", {"size": "big"}, ""),
        ("tokenizer_config.json", [], ""),
        ("tokenizer.json", {"model": None}, ""),
    ],
)
def test_a_transformers_folder_that_is_none_is_one_line(file, values, told, tmp_path):
    source = a_clip_model_folder(tmp_path / "source", 513)
    if isinstance(values, dict):
        edit(source / file, **values)
    else:
        (source / file).write_text(json.dumps(values))
    refused(source, tmp_path / "out", str(source), told)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("token_embedding.weight", (300,)), ("visual.conv1.weight", (32, 3, 4, 4)),
     ("positional_embedding", (13, 48)), ("visual.proj", ()), ("logit_scale", (2,))],
)  # fmt: skip
def test_weights_of_a_wrong_shape_are_one_line(name, shape, tmp_path):
    source = an_open_clip_folder(tmp_path / "source", CLIPA)
    path = source / "open_clip_model.safetensors"
    save_file({**load_file(path), name: torch.zeros(shape)}, path)
    refused(source, tmp_path / "out", str(source))
