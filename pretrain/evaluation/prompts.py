"""Prompt templates: a text with one {} for the class name."""

from collections.abc import Sequence
from string import Formatter


def check_prompts(option: str, prompts: Sequence[str]) -> None:
    """ValueError, naming the option, where there is no template or one is none."""
    if not prompts:
        raise ValueError(f"{option}: there is no template; give at least one text with one {{}}")
    for prompt in prompts:
        try:
            fields = [name for _, name, _, _ in Formatter().parse(prompt) if name is not None]
        except ValueError as error:
            raise ValueError(f"{option} {prompt!r}: {error}") from error
        if fields != [""]:
            raise ValueError(f"{option} {prompt!r}: it needs exactly one {{}}, for the class name")
