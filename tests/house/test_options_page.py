"""docs/options.md is what the code says."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_options_is_that_of_the_code():
    spec = importlib.util.spec_from_file_location("options_page", ROOT / "docs/options.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.page()
    for option in (
        "--stages.NAME.tokens.text_tokens",
        "--evaluation.probe.",
        "--caption_max_chars",
    ):
        assert f"`{option}" in page, f"{option} is not on the page"
    assert page == (ROOT / "docs/options.md").read_text("utf-8"), "run: python docs/options.py"
