"""What ranks send each other in one optimizer step, and how long that takes."""

from pretrain.plan.hardware import Links
from pretrain.plan.memory import ZeroLayout


def step_bytes(
    layout: ZeroLayout,
    *,
    parameters: int,
    weight_bytes: int,
    gradient_bytes: int,
    embed_dim: int,
    agreed: int,
    global_batch: int,
    ranks: int,
    passes: int,
    locked: int = 0,
) -> dict[str, int]:
    """Bytes that each rank sends in a step, by purpose.

    A ring sends (N - 1) / N of a tensor for a gather or a reduce-scatter, twice that for an
    all-reduce. passes: micro batches of a step; more than one are run forward twice. ZeRO 1 reduces
    once a step, ZeRO 2 and 3 after every backward pass; DeepSpeed 0.19.8 all-reduces at stage 2
    too. ZeRO 3 gathers the weights for every forward and every backward. locked: how many of the
    parameters are not trained; ZeRO 3 gathers these for the forwards alone, the others never send
    them. The loss gathers texts; agreed: on how many numbers a text its ranks agree.
    """
    share = (ranks - 1) / ranks
    trained = parameters - locked
    weights, still, reduced = (
        trained * weight_bytes,
        locked * weight_bytes,
        trained * gradient_bytes,
    )
    features = global_batch * embed_dim * 4
    if layout.stage < 3:
        gradients, gathers = 2 * reduced * (passes if layout.stage == 2 else 1), weights
    else:
        gradients = passes * reduced
        forwards = (2 if passes > 1 else 1) * passes
        gathers = (forwards + passes) * weights + forwards * still
    sent = {
        "texts' features gathered": features,
        "their gradients reduce-scattered": features,
        "texts' sums agreed": 2 * global_batch * agreed * 4,
        "gradients reduced": gradients,
        "weights gathered": gathers,
    }
    return {name: round(share * amount) for name, amount in sent.items()}


# Of a link's data sheet, what a ring reaches with large tensors (nccl-tests' bus bandwidth).
_REACHED = 0.8


def seconds(sent: dict[str, int], links: Links, *, nodes: int) -> float:
    """On the slowest link: a ring over several nodes crosses each node's link once."""
    speed = links.gpu_gb_per_s if nodes == 1 else min(links.gpu_gb_per_s, links.node_gb_per_s)
    return sum(sent.values()) / (speed * _REACHED * 1e9)
