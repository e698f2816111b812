"""The flows beside those of other libraries, with the same weights: zuko, and where installed normflows and nflows."""

import pytest
import torch
from test_flows_layers import noise, randomise
from torch import nn
from torch.distributions import AffineTransform, Distribution, Normal

from companion.models.flows import MAF, NICE, RealNVP
from companion.models.flows.coupling import AdditiveCoupling, AffineCoupling, Halves
from companion.models.flows.invertible_conv import InvertibleConv
from companion.models.flows.layers import Interleave, Reverse, Scaling, Unflatten
from companion.models.flows.maf import MaskedAffine
from companion.models.flows.normalisation import ActNorm
from companion.nets.coupling import CouplingMLP


def same(ours, theirs):
    """Values and log-dets, or one of them."""
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


# zuko: its couplings, masked layers and networks, with our weights


@pytest.fixture(scope="module")
def zuko():
    """Imported here alone: it switches the checks of torch.distributions off for everyone, and here they come back."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_validate_args", "arg_constraints"):
            patch.setattr(Distribution, name, vars(Distribution)[name])
        yield pytest.importorskip("zuko", reason="zuko is not installed: the extra `test` brings it")


def linear(network):
    """The layers with weights of a network in a row."""
    return [layer for layer in network if hasattr(layer, "weight")]


@torch.no_grad()
def copy(theirs, ours, rows, columns):
    """Our unit i is theirs at rows[i], our input j theirs at columns[j]."""
    assert theirs.weight.shape == ours.weight.shape
    theirs.weight[rows[:, None], columns] = ours.weight
    theirs.bias[rows] = ours.bias


def in_pairs(features):
    """Where zuko, whose networks answer (a_1, b_1, a_2, …), has our (a_1, a_2, …, b_1, …)."""
    return torch.arange(2 * features).unflatten(0, (-1, 2)).T.flatten()


def affine(layer):
    """z = x e^a + b."""
    return lambda raw, b: AffineTransform(b, (layer.log_scale.bound * raw.tanh()).exp())


def zuko_coupling(zuko, layer, dims):
    ours = [layer.network.first, *linear(layer.network.rest)]
    additive, given = isinstance(layer, AdditiveCoupling), torch.arange(dims) < dims // 2
    theirs = zuko.flows.GeneralCouplingTransform(
        dims,
        mask=~given if layer.part.flip else given,
        univariate=zuko.transforms.AdditiveTransform if additive else affine(layer),
        shapes=((),) if additive else ((), ()),
        hidden_features=[part.out_features for part in ours[:-1]],
    ).double()
    for mine, peer in zip(ours, linear(theirs.hyper), strict=True):
        paired = mine is ours[-1] and not additive
        rows = in_pairs(dims // 2) if paired else torch.arange(mine.out_features)
        copy(peer, mine, rows, torch.arange(mine.in_features))
    return theirs


def zuko_masked(zuko, layer, dims):
    """Here the hidden units of each degree stand together, in zuko the degrees take turns: so units change places, and
    then its masks are ours."""
    theirs = zuko.flows.MaskedAutoregressiveTransform(
        dims, univariate=affine(layer), hidden_features=[part.out_features for part in layer.hidden]
    ).double()
    columns, sees = torch.arange(dims), torch.eye(dims)
    for mine, peer in zip([*layer.hidden, layer.output], linear(theirs.hyper), strict=True):
        sees = (peer.mask.float() @ sees > 0).float()  # which coordinates
        rows = in_pairs(dims) if mine is layer.output else sees.sum(1).argsort(stable=True)
        assert torch.equal(peer.mask[rows][:, columns], mine.mask())
        copy(peer, mine, rows, columns)
        columns = rows
    return theirs


def in_zuko(zuko, flow):
    """The same flow. zuko's transforms lead from x to z, as our layers' `inverse` does."""
    dims, transforms = flow.dims, []

    def constant(make, *parameters):
        return zuko.lazy.UnconditionalTransform(make, *parameters, buffer=True)

    for layer in reversed(flow.layers):
        match layer:
            case AffineCoupling() | AdditiveCoupling():
                transforms.append(zuko_coupling(zuko, layer, dims))
            case MaskedAffine():
                transforms.append(zuko_masked(zuko, layer, dims))
            case Reverse():
                transforms.append(constant(zuko.transforms.PermutationTransform, torch.arange(dims).flip(0)))
            case Interleave():
                order = torch.cat([torch.arange(0, dims, 2), torch.arange(1, dims, 2)])
                transforms.append(constant(zuko.transforms.PermutationTransform, order))
            case Scaling():
                transforms.append(constant(AffineTransform, torch.zeros(dims).double(), layer.log_scale.exp()))
            case other:
                assert isinstance(other, Unflatten)
    base = zuko.distributions.DiagNormal(torch.zeros(dims).double(), torch.ones(dims).double())
    return zuko.distributions.NormalizingFlow(zuko.lazy.LazyComposedTransform(*transforms)(), base)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RealNVP((2,), couplings=3, hidden=(5, 4)),
        lambda: RealNVP((64,), couplings=8, hidden=(128, 128)),
        lambda: NICE((2,), couplings=3, hidden=(5,), base="gaussian"),
        lambda: NICE((64,), couplings=4, hidden=(32, 16, 8), base="gaussian"),
        # Multiples of dims - 1: as many units of every degree here as in zuko
        lambda: MAF((2,), layers=3, hidden=(4,)),
        lambda: MAF((7,), layers=4, hidden=(12, 6, 18)),
        lambda: MAF((64,), layers=2, hidden=(126, 63)),
    ],
    ids=["RealNVP 2", "RealNVP 64", "NICE 2", "NICE 64", "MAF 2", "MAF 7", "MAF 64"],
)
@torch.no_grad()
def test_zuko_gives_the_same_densities_and_inverses(zuko, make):
    flow = randomise(make())
    theirs = in_zuko(zuko, flow)
    x, z = 2 * noise(9, flow.dims), noise(9, flow.dims, seed=2)
    log_prob = flow.log_prob(x)
    assert (log_prob - Normal(0, 1).log_prob(x).sum(1)).abs().min() > 1e-3  # no identity
    same(log_prob, theirs.log_prob(x))
    same(flow.normalise(x), theirs.transform.call_and_ladj(x))
    same(flow.generate(z), theirs.transform.inv.call_and_ladj(z))


# normflows and nflows: their layers, around our networks where they have any


def of_bench(name):
    return pytest.importorskip(name, reason=f"{name} is not installed: the extra `bench` brings it")


def expanded(layer, x):
    """What a layer of normflows answers, a log-det of no shape for a whole batch among it."""
    value, log_det = layer(x)
    return value, log_det.expand(len(x))


class ShiftsAndScales(nn.Module):
    """The answer of a coupling's network as normflows wants it: b_1, a_1, b_2, …"""

    def __init__(self, coupling):
        super().__init__()
        self.coupling = coupling

    def forward(self, x):
        raw, b = self.coupling.network(x).chunk(2, 1)
        return torch.stack([b, self.coupling.log_scale(raw)], 2).flatten(1)


@torch.no_grad()
def test_normflows_gives_the_same_couplings():
    normflows = of_bench("normflows")
    flow = randomise(RealNVP((6,), couplings=4, hidden=(5, 4)))
    layers = [
        # Its layers multiply by e^a from z to x, ours from x to z.
        normflows.flows.Reverse(
            normflows.flows.AffineCouplingBlock(
                ShiftsAndScales(layer), split_mode="channel_inv" if layer.part.flip else "channel"
            )
        )
        for layer in flow.layers
        if isinstance(layer, AffineCoupling)
    ]
    theirs = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(6, trainable=False).double(), layers)
    x, z = noise(9, 6), noise(9, 6, seed=2)
    same(flow.log_prob(x), theirs.log_prob(x))
    same(flow.generate(z)[0], theirs(z))


@pytest.mark.filterwarnings("ignore:torch.lu is deprecated")
@torch.no_grad()
def test_normflows_gives_the_same_step_of_glow():
    normflows = of_bench("normflows")
    x, z = noise(5, 4, 3, 2), noise(5, 4, 3, 2, seed=2)
    torch.manual_seed(0)
    ours, theirs = randomise(InvertibleConv(4)), normflows.flows.Invertible1x1Conv(4, use_lu=True).double()
    assert not torch.equal(ours.permutation, ours.permutation.T)
    for name, value in {
        "L": ours.lower,
        "U": ours.upper,
        "log_S": ours.log_diagonal,
        "sign_S": ours.sign,
        "P": ours.permutation,
    }.items():
        getattr(theirs, name).copy_(value)
    same(ours.inverse(x), expanded(theirs.inverse, x))
    same(ours(z), expanded(theirs, z))

    ours, theirs = randomise(ActNorm(4)), normflows.flows.ActNorm((4, 1, 1)).double()
    theirs.s.copy_(ours.log_scale.reshape(1, 4, 1, 1))
    theirs.t.copy_(ours.shift.reshape(1, 4, 1, 1))
    theirs.data_dep_init_done.fill_(1)
    same(ours.inverse(x), expanded(theirs, x))
    same(ours(z), expanded(theirs.inverse, z))


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
@torch.no_grad()
def test_nflows_gives_the_same_layers():
    of_bench("nflows")
    from nflows import transforms

    x, z = noise(5, 4, 3, 2), noise(5, 4, 3, 2, seed=2)
    torch.manual_seed(0)
    convolution = transforms.OneByOneConvolution(4, identity_init=False).double()
    permuted = torch.eye(4)[convolution.permutation._permutation].double()
    normalisation = randomise(ActNorm(4))
    theirs = transforms.ActNorm(4).double()
    theirs.load_state_dict(normalisation.state_dict() | {"initialized": torch.tensor(True)}, strict=False)
    pairs = [
        (InvertibleConv(4, convolution.weight() @ permuted).double(), convolution, x, z),
        (normalisation, theirs, x, z),
    ]
    for flip in (False, True):
        network = randomise(CouplingMLP(3, (5, 4), 3))
        changed = (torch.arange(6) < 3) if flip else (torch.arange(6) >= 3)
        coupling = transforms.AdditiveCouplingTransform(changed, lambda *sizes, network=network: network)
        pairs.append((AdditiveCoupling(Halves(6, flip), network), coupling, x.flatten(1)[:, :6], z.flatten(1)[:, :6]))
    for mine, peer, at_x, at_z in pairs:
        same(mine.inverse(at_x), peer(at_x))
        same(mine(at_z), peer.inverse(at_z))
