"""`python -m pretrain.search MODEL DIR`: a page that searches a dataset by text or picture."""

from collections.abc import Sequence

from pretrain.cli import Command, Positional, end, run

SEARCH = Command(
    program="python -m pretrain.search",
    description="Serve a page that searches a dataset by text or picture.",
    run="pretrain.search.server:serve",
    options=("pretrain.search.options:SearchOptions",),
    positionals=(
        Positional(name="model", help="Exported model or run folder."),
        Positional(name="dataset", help="Dataset directory."),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 2 where the page cannot be served, 130 at Ctrl-C."""
    return run(SEARCH, arguments)


if __name__ == "__main__":
    end(main())
