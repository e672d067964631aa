"""The losses on several ranks are the loss and the gradient of one float64 process, without ever
holding all logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from engine_cases import float64_loss
from ranks import run_ranks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WIDTH = 24
GLOBAL_BATCH = 30
CHUNK = 7  # divides neither the 30 columns nor any rank's part of them
KINDS = ("softmax", "sigmoid")


def features(samples: int = GLOBAL_BATCH, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(samples, width, generator=generator)
    texts = images + 0.5 * torch.randn(samples, width, generator=generator)
    texts[1:4] = texts[0]  # one caption of several pictures, and some that are another's
    texts[5:7] = images[8]
    images[13] = images[12]
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


def build(kind: str, chunk: int = CHUNK):
    from pretrain.losses.options import SigmoidOptions, SoftmaxOptions
    from pretrain.losses.sigmoid import SigmoidLoss
    from pretrain.losses.softmax import SoftmaxLoss

    if kind == "softmax":
        return SoftmaxLoss(SoftmaxOptions(), chunk)
    # Near the values of a trained model, where the loss of a right pair is small.
    return SigmoidLoss(SigmoidOptions(initial_scale=20.0, initial_bias=-12.0), chunk)


def float64_sigmoid(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """Algorithm 1 of arXiv 2303.15343."""
    signs = 2 * torch.eye(len(images), dtype=images.dtype) - 1
    logits = log_scale.exp() * images @ texts.T + bias
    return -F.logsigmoid(signs * logits).sum() / len(images)


def results(loss: Tensor, images: Tensor, texts: Tensor, objective) -> dict:
    loss.backward()
    return {
        "loss": loss.detach(),
        "image gradient": images.grad,
        "text gradient": texts.grad,
        **{f"{name} gradient": p.grad for name, p in objective.named_parameters()},
    }


def losses_on_a_rank(rank: int) -> list[dict]:
    return [loss_on_a_rank(rank, kind) for kind in KINDS]


def loss_on_a_rank(rank: int, kind: str, chunk: int = CHUNK) -> dict:
    """This rank's part of the global loss and gradients, whole where they are the objective's."""
    world = torch.distributed.get_world_size()
    local = GLOBAL_BATCH // world
    mine = slice(rank * local, (rank + 1) * local)
    images, texts = (t[mine].clone().requires_grad_() for t in features())
    objective = build(kind, chunk)
    result = objective(images, texts)
    found = {**results(result.loss, images, texts, objective), **result.measures}
    # What DeepSpeed does with every parameter's gradient: the mean over ranks. A feature has one
    # owner, so its gradient is divided by the number of ranks.
    for name, value in found.items():
        if value.ndim < 2:
            torch.distributed.all_reduce(value)
        found[name] = value / world
    return found


def expected(kind: str) -> dict:
    """The same of one float64 process."""
    images, texts = (t.double().requires_grad_() for t in features())
    objective = build(kind).double()
    judge = float64_loss if kind == "softmax" else float64_sigmoid
    found = results(judge(images, texts, *objective.parameters()), images, texts, objective)
    # Above all others: of equals none is right.
    logits = (images @ texts.T).detach()
    own = logits.diagonal().clone()
    others = logits.fill_diagonal_(-math.inf)
    found["image_to_text_accuracy"] = (own > others.amax(1) + 1e-9).double().mean()
    found["text_to_image_accuracy"] = (own > others.amax(0) + 1e-9).double().mean()
    return found


def assert_equal(found: dict, wanted: dict, tolerance: float) -> None:
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        worst = float((found[name].double() - value).abs().max() / value.abs().max())
        print(f"{name}: largest relative difference {worst:.1e}")
        assert worst < tolerance, f"{name}: largest relative difference {worst}"


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_losses_gradients_and_accuracies_equal_one_float64_process(world_size):
    of_rank = run_ranks(losses_on_a_rank, world_size)
    for place, kind in enumerate(KINDS):
        parts = [found[place] for found in of_rank]
        joined = {
            name: torch.cat([part[name] for part in parts]) if value.ndim == 2 else value
            for name, value in parts[0].items()
        }
        wanted = expected(kind)
        shares = [float(wanted[f"{way}_accuracy"]) for way in ("image_to_text", "text_to_image")]
        assert shares[0] != shares[1] and all(0 < share < 1 for share in shares)
        assert_equal(joined, wanted, 1e-5)


def losses_of_one_process(rank: int) -> list[list[dict]]:
    """Of each kind open_clip's loss, and ours in chunks of several sizes."""
    from pretrain.base import compat

    compat.make_torchvision_importable()
    from open_clip.loss import ClipLoss, SigLipLoss

    found = []
    for kind in KINDS:
        images, texts = (t.clone().requires_grad_() for t in features())
        objective = build(kind)
        scale = objective.log_scale.exp()
        theirs = (
            ClipLoss()(images, texts, scale)
            if kind == "softmax"
            else SigLipLoss()(images, texts, scale, objective.bias)
        )
        ours = [loss_on_a_rank(rank, kind, chunk) for chunk in (CHUNK, GLOBAL_BATCH, 4096)]
        found.append([results(theirs, images, texts, objective), *ours])
    return found


def test_losses_equal_those_of_open_clip_whatever_the_chunk():
    (found,) = run_ranks(losses_of_one_process, 1)
    for theirs, *ours in found:
        for one in ours:
            assert_equal({name: one[name] for name in theirs}, theirs, 1e-5)


def nearly_solved(noise: float, samples: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples + width)
    images = torch.randn(samples, width, generator=generator)
    texts = images + noise * torch.randn(samples, width, generator=generator)
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


# (scale, noise, samples, width, chunk): from solved but for 1e-40 to hardly begun.
EXACTNESS = [
    (100.0, 0.01, 256, 512, 4096),
    (100.0, 0.3, 256, 512, 100),
    (100.0, 1.0, 64, 64, 24),
    (100.0, 0.02, 16, 3, 5),
    (60.0, 0.1, 256, 128, 100),
    (14.3, 0.5, 128, 64, 50),
    (1.0, 2.0, 32, 16, 7),
]


def exact_softmax(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """log(1 + others / own): even float64 rounds 1 - own's share away at a scale of 100."""
    logits = log_scale.exp() * images @ texts.T
    others = logits.masked_fill(torch.eye(len(images), dtype=torch.bool), -torch.inf)
    of_images, of_texts = (F.softplus(others.logsumexp(way) - logits.diagonal()) for way in (1, 0))
    return (of_images + of_texts).mean() / 2


def softmax_results(loss, dtype, scale, noise, samples, width, chunk) -> dict:
    from pretrain.losses.options import SoftmaxOptions
    from pretrain.losses.softmax import SoftmaxLoss

    objective = SoftmaxLoss(SoftmaxOptions(initial_scale=scale), chunk).to(dtype)
    images, texts = (t.to(dtype).requires_grad_() for t in nearly_solved(noise, samples, width))
    made = (
        objective(images, texts).loss if loss is None else loss(images, texts, objective.log_scale)
    )
    return results(made, images, texts, objective)


def errors_beside_plain_torch(rank: int) -> list[tuple[str, float, float]]:
    """(number and case, our error, plain fp32 cross-entropy's), as shares of the number's norm."""
    found = []
    for case in EXACTNESS:
        ours = softmax_results(None, torch.float32, *case)
        theirs = softmax_results(float64_loss, torch.float32, *case)
        for name, right in softmax_results(exact_softmax, torch.float64, *case).items():
            errors = [
                float((o[name].double() - right).norm() / right.norm()) for o in (ours, theirs)
            ]
            found.append((f"{name} of {case}", errors[0], errors[1]))
    return found


def test_softmax_is_as_exact_as_plain_torch_where_pairs_are_nearly_solved_too():
    (found,) = run_ranks(errors_beside_plain_torch, 1)
    for case, ours, theirs in found:
        print(f"{case}: ours {ours:.1e}, plain fp32 {theirs:.1e}")
    worse = [case for case in found if case[1] > 1.2 * case[2] + 1e-6]
    assert not worse, worse


class Largest(TorchDispatchMode):
    """Remembers the most elements of any tensor that an operation gave."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(given):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.numel())
        return given


def largest_tensors(rank: int, samples: int, chunk: int) -> list[int]:
    found = []
    for kind in KINDS:
        images, texts = (t.requires_grad_() for t in features(samples, 8))
        with Largest() as largest:
            build(kind, chunk)(images, texts).loss.backward()
        assert images.grad.any() and texts.grad.any()
        found.append(largest.elements)
    return found


def test_no_tensor_is_larger_than_the_local_rows_times_a_chunk():
    samples, chunk = 1000, 96
    (found,) = run_ranks(largest_tensors, 1, samples, chunk)
    assert found == [samples * chunk] * 2, f"{[n / samples for n in found]} columns at once"


class Tf32(TorchDispatchMode):
    """Rounds what matrix products take to TF32's ten bits, as a GPU does where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in ("aten::mm", "aten::addmm"):
            self.asked.add(torch.backends.cuda.matmul.fp32_precision)
            first = len(args) - 2
            args = (*args[:first], *map(rounded_to_tf32, args[first:]))
        return function(*args, **(kwargs or {}))


def rounded_to_tf32(tensor: Tensor) -> Tensor:
    bits = tensor.contiguous().view(torch.int32)
    return (bits + 0xFFF + ((bits >> 13) & 1) >> 13 << 13).view(torch.float32)


def errors_of_tf32(rank: int) -> list[tuple[float, float, set[str], str]]:
    found = []
    for tf32 in (True, False):
        images, texts = (t.requires_grad_() for t in features(512, 64))
        objective = build("softmax", 96)
        objective.start(betas=(0.9, 0.95), eps=1e-8, tf32=tf32)
        before = torch.backends.cuda.matmul.fp32_precision
        with Tf32() as products:
            loss = objective(images, texts).loss
            loss.backward()
        exact = [t.detach().double().requires_grad_() for t in (images, texts)]
        wanted = float64_loss(*exact, objective.log_scale.detach().double())
        wanted.backward()
        apart = max(
            float((ours.grad - theirs.grad).norm() / theirs.grad.norm())
            for ours, theirs in zip((images, texts), exact, strict=True)
        )
        assert torch.backends.cuda.matmul.fp32_precision == before
        found.append((abs(float(loss) - float(wanted)), apart, products.asked, before))
    return found


def test_products_in_tf32_cost_less_than_bf16_features_do_and_only_where_allowed():
    (allowed, plain) = run_ranks(errors_of_tf32, 1)[0]
    assert allowed[2] == {"tf32"} and plain[2] == {"ieee"}
    assert allowed[0] < 1e-4 and allowed[1] < 2e-3, f"loss, gradient: {allowed[:2]}"


def test_the_scale_s_cap_holds_or_is_none():
    from pretrain.losses.options import SoftmaxOptions
    from pretrain.losses.softmax import SoftmaxLoss

    for limit, kept in ((100.0, (100.0, 1.0)), (None, (1000.0, 0.5))):
        loss = SoftmaxLoss(SoftmaxOptions(max_scale=limit))
        for value, wanted in zip((1000.0, 0.5), kept, strict=True):
            loss.log_scale.data.fill_(math.log(value))
            loss.clamp()
            assert loss.figures()["logit_scale"] == pytest.approx(wanted), (limit, value)
    with pytest.raises(ValueError, match="initial_scale=inf"):
        SoftmaxOptions(initial_scale=math.inf, max_scale=None)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (dict(initial_scale=0.0), r"loss\.sigmoid\.initial_scale=0\.0"),
        (dict(initial_bias=float("nan")), r"loss\.sigmoid\.initial_bias=nan"),
    ],
)
def test_a_wrong_start_of_the_sigmoid_loss_is_named(options, named):
    from pretrain.losses.options import SigmoidOptions

    with pytest.raises(ValueError, match=named):
        SigmoidOptions(**options)
