"""What ranks send each other in one optimizer step, and how long that takes."""

from pretrain.plan.hardware import Links
from pretrain.plan.memory import ZeroLayout


def step_bytes(
    layout: ZeroLayout,
    *,
    parameters: int,
    weight_bytes: int,
    embed_dim: int,
    global_batch: int,
    ranks: int,
    passes: int,
    locked: int = 0,
) -> dict[str, int]:
    """Bytes that each rank sends in a step, by purpose.

    A ring sends (N - 1) / N of a tensor for a gather or a reduce-scatter, twice that for an
    all-reduce. passes: micro batches of a step; more than one are run forward twice. ZeRO 1 reduces
    once a step, ZeRO 2 and 3 after every backward pass; ZeRO 3 gathers the weights for every
    forward and every backward. locked: how many of the parameters are not trained; ZeRO 3 gathers
    these for the forwards alone, the others never send them.
    """
    share = (ranks - 1) / ranks
    weights, still = (parameters - locked) * weight_bytes, locked * weight_bytes
    features = global_batch * 2 * embed_dim * 4
    if layout.stage == 1:
        gradients, gathers = 2 * weights, weights
    elif layout.stage == 2:
        gradients, gathers = passes * weights, weights
    else:
        gradients = passes * weights
        forwards = (2 if passes > 1 else 1) * passes
        gathers = (forwards + passes) * weights + forwards * still
    sent = {
        "features gathered": features,
        "their gradients reduce-scattered": features,
        "gradients reduced": gradients,
        "weights gathered": gathers,
    }
    return {name: round(share * amount) for name, amount in sent.items()}


def seconds(sent: dict[str, int], links: Links, *, nodes: int) -> float:
    """On the slowest link: a ring over several nodes crosses each node's link once."""
    speed = links.gpu_gb_per_s if nodes == 1 else min(links.gpu_gb_per_s, links.node_gb_per_s)
    return sum(sent.values()) / (speed * 1e9)
