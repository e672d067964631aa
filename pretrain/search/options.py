"""How the search page is served."""

from dataclasses import dataclass

from pretrain.base.checks import check_between, check_positive


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How the page is served."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own shows the dataset to the network."""
    port: int = 8000
    """Port to listen on; 0: a free one."""
    top: int = 24
    """Pictures that are shown for a query."""
    embeddings: str | None = None
    """Name of embeddings of the dataset. Null: the first that this model made, or none."""
    batch: int = 64
    """Pictures per forward, where they are embedded now."""
    device: str = "auto"
    """Any of torch's names. auto: CUDA if there, else the CPU."""

    def __post_init__(self) -> None:
        check_positive({"--batch": self.batch})
        check_between({"--port": self.port}, 0, 65536)
        check_between({"--top": self.top}, 1, 1001)
