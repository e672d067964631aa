"""`python -m pretrain.export`."""

from jsonargparse import auto_cli

from pretrain.export.command import main

if __name__ == "__main__":
    auto_cli(main, as_positional=False)
