"""Flows: RealNVP on vectors, a step of Glow, and drawing from a masked autoregressive flow.

The networks inside have the same sizes everywhere, so that the numbers of parameters, printed beside each candidate,
differ by what a library learns around them: bounds of the log-scales here, shifts of the linear layers there. All
train with the same fused AdamW.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from benchmarks.harness import compare, count, peer
from companion.models.flows import MAF, Glow, RealNVP
from companion.models.flows.maf import MaskedAffine
from companion.nets.coupling import CouplingMLP, GlowNet

DIM, COUPLINGS, HIDDEN, BATCH = 64, 8, (128, 128), 512
IMAGE, STEPS, CHANNELS, IMAGES = (1, 16, 16), 8, 64, 64
PIXELS, UNITS, DRAWS = 784, 500, 64

LogProb = Callable[[Tensor], Tensor]
Sample = Callable[[int], object]
# A library's flow: the module, its log_prob(x) and its sample(n).
Candidate = tuple[nn.Module, LogProb, Sample]


def ours(flow: nn.Module) -> Candidate:
    return flow, flow.log_prob, flow.sample


# The peers


def of_normflows(base: nn.Module, layers: list[nn.Module]) -> Candidate:
    from normflows import NormalizingFlow

    flow = NormalizingFlow(base, layers)
    return flow, flow.log_prob, flow.sample


def of_nflows(layers: list[nn.Module], shape: tuple[int, ...]) -> Candidate:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform

    flow = Flow(CompositeTransform(layers), StandardNormal(shape))
    return flow, flow.log_prob, flow.sample


def of_zuko(flow: nn.Module) -> Candidate:
    return flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,))


def realnvps() -> dict[str, Candidate]:
    half, found = DIM // 2, {}
    if (normflows := peer("normflows")) is not None:
        layers: list[nn.Module] = []
        for _ in range(COUPLINGS):
            network = normflows.nets.MLP([half, *HIDDEN, DIM])
            layers += [normflows.flows.AffineCouplingBlock(network), normflows.flows.Permute(DIM, mode="swap")]
        found["normflows"] = of_normflows(normflows.distributions.DiagGaussian(DIM, trainable=False), layers)
    if peer("nflows") is not None:
        from nflows.transforms import AffineCouplingTransform

        halves = torch.arange(DIM) < half
        layers = [
            AffineCouplingTransform(halves if k % 2 else ~halves, lambda i, o: CouplingMLP(i, HIDDEN, o))
            for k in range(COUPLINGS)
        ]
        found["nflows"] = of_nflows(layers, (DIM,))
    if (zuko := peer("zuko")) is not None:
        found["zuko"] = of_zuko(zuko.flows.NICE(DIM, transforms=COUPLINGS, hidden_features=HIDDEN))
    return found | {"companion": ours(RealNVP((DIM,), COUPLINGS, HIDDEN))}


def glows() -> dict[str, Candidate]:
    shape, found = (4 * IMAGE[0], IMAGE[1] // 2, IMAGE[2] // 2), {}
    channels = shape[0]
    if (normflows := peer("normflows")) is not None:
        layers = [normflows.flows.GlowBlock(channels, CHANNELS) for _ in range(STEPS)]
        base = normflows.distributions.GlowBase(shape)
        found["normflows"] = of_normflows(base, [*layers, normflows.flows.Squeeze()])
    if peer("nflows") is not None:
        from nflows.transforms import ActNorm, AffineCouplingTransform, OneByOneConvolution, SqueezeTransform

        halves = torch.arange(channels) >= channels // 2
        layers = [SqueezeTransform()]
        for _ in range(STEPS):
            coupling = AffineCouplingTransform(halves, lambda i, o: GlowNet(i, CHANNELS, o))
            layers += [ActNorm(channels), OneByOneConvolution(channels), coupling]
        found["nflows"] = of_nflows(layers, shape)
    print("zuko is left out of Glow: it has no flows of images.")
    return found | {"companion": ours(Glow(IMAGE, squeezes=1, steps=STEPS, hidden=CHANNELS))}


def mafs() -> dict[str, Candidate]:
    found = {}
    # A single hidden layer is what these two call no blocks.
    sizes = {"features": PIXELS, "hidden_features": UNITS, "num_blocks": 0, "use_residual_blocks": False}
    if (normflows := peer("normflows")) is not None:
        # Its layer draws in one pass and normalises one by one, so that it is to be reversed.
        layer = normflows.flows.Reverse(normflows.flows.MaskedAffineAutoregressive(**sizes))
        found["normflows"] = of_normflows(normflows.distributions.DiagGaussian(PIXELS, trainable=False), [layer])
    if peer("nflows") is not None:
        from nflows.transforms import MaskedAffineAutoregressiveTransform

        found["nflows"] = of_nflows([MaskedAffineAutoregressiveTransform(**sizes)], (PIXELS,))
    if (zuko := peer("zuko")) is not None:
        found["zuko"] = of_zuko(zuko.flows.MAF(PIXELS, transforms=1, hidden_features=(UNITS,)))
    return found | {"companion": ours(MAF((PIXELS,), layers=1, hidden=(UNITS,)))}


# The workloads


def measure(
    workload: str,
    candidates: dict[str, Candidate],
    make: Callable[[Candidate], Callable],
    floor: tuple[str, Callable],
    repeats: int,
) -> dict:
    """Time what `make` makes of each candidate, ours the last of them, beside a floor."""
    runs = {f"{name}, {count(one[0]):,} parameters": make(one) for name, one in candidates.items()}
    result = compare(workload, runs | {f"floor: {floor[0]}": floor[1]}, repeats, count(candidates["companion"][0]))
    *peers, companion, bare = (row["milliseconds"] for row in result["rows"])
    result["to the floor"] = companion / bare
    print(f"  companion takes {companion / bare:.2f} of the floor", end="")
    if peers:
        result["to the fastest peer"] = companion / min(peers)
        print(f" and {companion / min(peers):.2f} of the fastest peer", end="")
    print()
    return result


def step(loss: Callable[[], Tensor], module: nn.Module) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=0, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def likelihood_step(x: Tensor) -> Callable[[Candidate], Callable]:
    return lambda candidate: step(lambda: -candidate[1](x).mean(), candidate[0])


def realnvp(repeats: int = 60) -> list[dict]:
    candidates, x = realnvps(), torch.randn(BATCH, DIM)
    networks = nn.ModuleList(CouplingMLP(DIM // 2, HIDDEN, DIM) for _ in range(COUPLINGS))
    given = x[:, : DIM // 2].contiguous()

    def bare() -> Tensor:
        return sum(network(given).mean() for network in networks)

    title = f"RealNVP {DIM}, {COUPLINGS} couplings, MLP {' × '.join(map(str, HIDDEN))}, batch {BATCH}"
    alone = "the networks alone"
    training = measure(
        f"{title}: training step", candidates, likelihood_step(x), (alone, step(bare, networks)), repeats
    )
    with torch.no_grad():
        log_prob = measure(f"{title}: log_prob", candidates, lambda one: lambda: one[1](x), (alone, bare), repeats)
        sample = measure(f"{title}: sample", candidates, lambda one: lambda: one[2](BATCH), (alone, bare), repeats)
    return [training, log_prob, sample]


def glow(repeats: int = 40) -> dict:
    candidates, x = glows(), torch.randn(IMAGES, *IMAGE)
    half, height, width = 2 * IMAGE[0], IMAGE[1] // 2, IMAGE[2] // 2
    networks = nn.ModuleList(GlowNet(half, CHANNELS, 2 * half) for _ in range(STEPS))
    networks.to(memory_format=torch.channels_last)
    given = torch.randn(IMAGES, half, height, width).to(memory_format=torch.channels_last)
    floor = step(lambda: sum(network(given).mean() for network in networks), networks)
    return measure(
        f"Glow {IMAGE[1]} × {IMAGE[2]}, {STEPS} steps, {CHANNELS} channels, batch {IMAGES}: training step",
        candidates,
        likelihood_step(x),
        ("the networks alone", floor),
        repeats,
    )


@torch.no_grad()
def maf(repeats: int = 5) -> dict:
    layer, z = MaskedAffine(PIXELS, (UNITS,)), torch.randn(DRAWS, PIXELS)
    return measure(
        f"MAF {PIXELS}-{UNITS}, batch {DRAWS}: sample",
        mafs(),
        lambda one: lambda: one[2](DRAWS),
        ("all of the network, once", lambda: layer.inverse(z)),
        repeats,
    )


def run() -> list[dict]:
    try:
        return [*realnvp(), glow(), maf()]
    finally:
        # zuko, once imported, has switched them off for everyone.
        Distribution.set_default_validate_args(__debug__)
