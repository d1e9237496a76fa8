"""Operations that keep units apart along one axis and mix them along another: followed along the first, and not along the second.

Eight units are computed by `a` and read by `b`. Where they are followed, unit i owns row i of `a` and column i of `b`, whatever
runs between them.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pliant import trace
from pliant.units import UnitMap
from tests.units.hard_cases import Net

ROWS = torch.tensor([0, 1, 1, 2])  # where four examples go among three nodes
GRAPH = torch.tensor([[0.0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 1]])


def between(function: Any, *, space: int | None = None, **parts: Any) -> nn.Module:
    """`a`, a function of its output, `b`: linear, or convolutions over some axes of space."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    if space is None:
        a, b = nn.Linear(5, 8), nn.Linear(8, 2)
    else:
        a, b = kinds[space - 1](3, 8, 1), kinds[space - 1](8, 2, 1)
    return Net(lambda net, x: net.b(function(net, net.a(x))), a=a, b=b, **parts)


def followed(net: nn.Module, *inputs: Any, name: str = "a") -> UnitMap:
    """The plan, in which the eight units are, and are proved to be."""
    plan = trace(net, inputs)
    assert name in [group.name for group in plan.groups], str(plan)
    found = plan.verify(net, inputs)
    assert {row.verdict for row in found.rows} == {"exact"}, str(found)
    return plan


def owns_row_and_column(plan: UnitMap) -> None:
    (group,) = plan.groups
    assert [(part.parameter, part.axis, part.index) for part in group.incoming] == [
        ("a.weight", 0, None),
        ("a.bias", 0, None),
    ]
    assert [(part.parameter, part.axis, part.index) for part in group.outgoing] == [("b.weight", 1, None)]


def left_alone(net: nn.Module, *inputs: Any) -> str:
    with pytest.raises(ValueError, match="no resettable unit") as caught:
        trace(net, inputs, trial=False)
    return str(caught.value)


def unpool(space: int) -> Any:
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[space - 1]
    back = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[space - 1]

    def run(net: Any, h: Tensor) -> Tensor:
        return back(*pool(F.relu(h), 2, return_indices=True), 2)

    return run


def sampled(mode: str, padding: str) -> Any:
    def run(net: Any, h: Tensor) -> Tensor:
        shape = torch.Size((2, 8, *[3] * (h.dim() - 2)))
        grid = F.affine_grid(0.8 * torch.eye(h.dim() - 2, h.dim() - 1).expand(2, -1, -1), shape, align_corners=False)
        return F.grid_sample(h, grid, mode, padding, align_corners=False)

    return run


def spectrum(net: Any, h: Tensor) -> Tensor:
    window = torch.hann_window(8)
    found = torch.stft(h.flatten(0, 1), 8, 4, window=window, return_complex=True)
    return torch.istft(found * 2, 8, 4, window=window).unflatten(0, h.shape[:2])


IMAGES = {
    **{f"grid, {mode}, {pad}": sampled(mode, pad) for mode in ("bilinear", "nearest", "bicubic") for pad in ("zeros", "border")},
    "max unpool": unpool(2),
    "fold of windows side by side": lambda net, h: F.fold(F.unfold(h, 2, stride=2), 4, 2, stride=2),
    "fold of windows that overlap": lambda net, h: F.fold(F.unfold(h, 3, padding=1), 4, 3, padding=1),
    "fourier transform over space": lambda net, h: torch.fft.irfft2(torch.fft.rfft2(h)),
    "a blur of constants": lambda net, h: F.conv2d(F.relu(h), torch.ones(8, 1, 3, 3), stride=2, padding=1, groups=8),
    "a blur of constants, transposed": lambda net, h: F.conv_transpose2d(h, torch.ones(8, 1, 3, 3), groups=8),
    "a blur of channels one by one": lambda net, h: F.conv2d(h.flatten(0, 1)[:, None], torch.ones(1, 1, 3, 3)).view(2, 8, 2, 2),
}  # fmt: skip
VOLUMES = {
    "grid": sampled("bilinear", "zeros"),
    "max unpool": unpool(3),
    "fractional max pool": lambda net, h: F.fractional_max_pool3d(h, 2, 2),
}
SIGNALS = {
    "max unpool": unpool(1),
    "short-time fourier transform": spectrum,
    "fourier transform over time": lambda net, h: torch.fft.rfft(h).abs(),
    "fourier transform over time, both parts": lambda net, h: torch.view_as_real(torch.fft.fft(h)).flatten(-2),
}
EXAMPLES = {
    **{
        f"scatter_reduce {how}, self {with_self}": lambda net, h, how=how, with_self=with_self: torch.ones(3, 8).scatter_reduce(
            0, ROWS[:, None].expand(4, 8), h, how, include_self=with_self
        )
        for how in ("sum", "amax", "amin", "mean", "prod")
        for with_self in (True, False)
    },
    "scatter_add of a part": lambda net, h: torch.zeros(3, 8).scatter_add(0, ROWS[:, None].expand(4, 8), F.pad(h, (0, 2))),
    "index_reduce": lambda net, h: torch.zeros(3, 8).index_reduce(0, ROWS, h, "mean", include_self=False),
    "index_put, adding": lambda net, h: torch.zeros(3, 8).index_put((ROWS,), h, accumulate=True),
    "index_put of two axes, adding": lambda net, h: torch.zeros(3, 2, 8)
    .index_put((ROWS, ROWS % 2), h, accumulate=True)
    .flatten(0, 1),
    "index_put by a mask, adding": lambda net, h: torch.zeros(6, 8).index_put(
        (torch.tensor([True, False, True, True, False, True]),), h, accumulate=True
    ),
    "segments": lambda net, h: torch.segment_reduce(h, "sum", lengths=torch.tensor([1, 3])),
    "segments, largest": lambda net, h: torch.segment_reduce(h, "max", lengths=torch.tensor([3, 1])),
    "masked_select": lambda net, h: h.masked_select(torch.tensor([True, False, True, True])[:, None]).view(3, 8),
    "masked_scatter": lambda net, h: torch.zeros(6, 8).masked_scatter(
        torch.tensor([True, False, True, True, False, True])[:, None].expand(6, 8), h
    ),
    "quantile": lambda net, h: h - h.quantile(0.3, dim=0, keepdim=True),
    "quantile without nan": lambda net, h: h - h.nanquantile(0.3, dim=0, keepdim=True),
    "median without nan": lambda net, h: h - h.nanmedian(0).values,
    "mean without nan": lambda net, h: h - h.nanmean(0),
    "renorm of units": lambda net, h: h.renorm(2, 1, 1.0),
    "a table of a function": lambda net, h: torch.tensor([0.0, 1, 2, 5])[torch.bucketize(h, torch.tensor([-1.0, 0, 1]))] * h,
    "a table by searchsorted": lambda net, h: torch.tensor([0.0, 1, 2, 5])[torch.searchsorted(torch.tensor([-1.0, 0, 1]), h)] * h,
    "sparse matrix": lambda net, h: torch.sparse.mm(GRAPH.to_sparse(), F.relu(h)),
    "sparse matrix, compressed rows": lambda net, h: GRAPH.to_sparse_csr() @ F.relu(h),
    "sparse matrix, a sum beside it": lambda net, h: torch.sparse.addmm(h, GRAPH.to_sparse(), h),
    "sparse matrix, largest": lambda net, h: torch.sparse.mm(GRAPH.to_sparse_csr(), h, "amax"),
    "sparse matrix made in the forward": lambda net, h: torch.sparse_coo_tensor(ROWS.repeat(2, 1), torch.ones(4), (4, 4)) @ h,
}  # fmt: skip


@pytest.mark.parametrize("run", IMAGES.values(), ids=IMAGES)
def test_channels_are_followed_over_space(run):
    torch.manual_seed(0)
    owns_row_and_column(followed(between(run, space=2), torch.randn(2, 3, 4, 4)))


@pytest.mark.parametrize("run", VOLUMES.values(), ids=VOLUMES)
def test_channels_are_followed_through_volumes(run):
    torch.manual_seed(0)
    owns_row_and_column(followed(between(run, space=3), torch.randn(2, 3, 4, 4, 4)))


@pytest.mark.parametrize("run", SIGNALS.values(), ids=SIGNALS)
def test_channels_are_followed_over_time(run):
    torch.manual_seed(0)
    owns_row_and_column(followed(between(run, space=1), torch.randn(2, 3, 16)))


@pytest.mark.filterwarnings("ignore:.*(beta|invariant)")  # torch's, of index_reduce and sparse tensors
@pytest.mark.parametrize("run", EXAMPLES.values(), ids=EXAMPLES)
def test_units_are_followed_from_example_to_example(run):
    torch.manual_seed(0)
    plan = trace(net := between(run), x := torch.randn(4, 5))
    owns_row_and_column(plan)
    assert not plan.verify(net, x).wrong


def test_units_are_followed_through_steps_that_a_fourier_transform_mixes():
    torch.manual_seed(0)
    run = between(lambda net, h: torch.fft.irfft(2 * torch.fft.rfft(h, dim=1), dim=1))
    owns_row_and_column(followed(run, torch.randn(2, 6, 5)))


MIXED = {
    "fourier transform": lambda net, h: torch.fft.fft(h).real,
    "fourier transform over both axes": lambda net, h: torch.fft.fft2(h).real,
    "scatter_reduce": lambda net, h: torch.zeros(4, 8).scatter_reduce(1, torch.arange(8).expand(4, 8) // 2, h, "amax"),
    "scatter_add": lambda net, h: torch.zeros(4, 8).scatter_add(1, torch.arange(8).expand(4, 8) // 2, h),
    "index_reduce": lambda net, h: torch.zeros(4, 8).index_reduce(1, torch.arange(8) // 2, h, "mean"),
    "index_put, adding": lambda net, h: torch.zeros(4, 8).index_put(
        (torch.arange(4)[:, None], torch.arange(8)[None] // 2), h, accumulate=True
    ),
    "segments": lambda net, h: torch.segment_reduce(h.t().contiguous(), "sum", lengths=torch.ones(8).long()).t(),
    "quantile": lambda net, h: h - h.quantile(0.3, dim=1, keepdim=True),
    "renorm of examples": lambda net, h: h.renorm(2, 0, 0.5),
    "sparse matrix on the right": lambda net, h: h @ torch.ones(8, 8).to_sparse(),
    "a filter of constants over channels": lambda net, h: F.conv1d(h[..., None], torch.ones(8, 8, 1))[..., 0],
    "fold of units": lambda net, h: F.fold(h.view(4, 4, 2), (2, 3), (2, 2)).reshape(4, 6) @ torch.ones(6, 8),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*(beta|invariant)")
@pytest.mark.parametrize("run", MIXED.values(), ids=MIXED)
def test_units_end_where_the_same_operation_mixes_them(run):
    torch.manual_seed(0)
    assert "all units mixed by" in left_alone(between(run), torch.randn(4, 5))


def test_places_that_units_decide_leave_these_units_alone():
    """A spatial transformer: what is sampled goes on, where it is sampled is nobody's to reset."""

    def run(net: Any, x: Tensor) -> Tensor:
        where = net.where(F.relu(net.small(x.flatten(1)))).view(2, 2, 3)
        grid = F.affine_grid(where, [2, 8, 4, 4], align_corners=False)
        return net.b(F.grid_sample(F.relu(net.a(x)), grid, align_corners=False))

    torch.manual_seed(0)
    parts = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 2, 1), "small": nn.Linear(48, 7), "where": nn.Linear(7, 6)}
    plan = followed(Net(run, **parts), torch.randn(2, 3, 4, 4))
    assert {group.name for group in plan.groups} == {"a", "small"}


def test_a_learned_grid_is_nobodys_and_leaves_the_channels_as_they_are():
    def run(net: Any, x: Tensor) -> Tensor:
        return net.b(F.grid_sample(F.relu(net.a(x)), net.grid.expand(2, 4, 4, 2), align_corners=False))

    torch.manual_seed(0)
    parts = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 2, 1), "grid": nn.Parameter(0.5 * torch.randn(1, 4, 4, 2))}
    owns_row_and_column(followed(Net(run, **parts), torch.randn(2, 3, 4, 4)))


def test_indices_of_another_branch_join_its_channels_to_those_that_they_place():
    """An encoder's places in its decoder: channel c of both is one unit, which the middle layer also feeds to itself."""

    def run(net: Any, x: Tensor) -> Tensor:
        h, where = F.max_pool2d(F.relu(net.a(x)), 2, return_indices=True)
        return net.b(F.max_unpool2d(net.middle(h), where, 2))

    torch.manual_seed(0)
    net = Net(run, a=nn.Conv2d(3, 8, 1), middle=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 2, 1))
    plan = followed(net, torch.randn(2, 3, 4, 4), name="a")
    (group,) = plan.groups
    assert {part.parameter for part in group.incoming} == {"a.weight", "a.bias", "middle.weight", "middle.bias"}
    assert {part.parameter for part in group.outgoing} == {"middle.weight", "b.weight"}


def test_a_cross_product_mixes_the_axis_of_its_vectors_alone():
    """Row i of the consumer's input depends on units i of both vectors' axes: along units three are one."""
    torch.manual_seed(0)
    net = between(lambda net, h: torch.linalg.cross(F.relu(h), h.cos(), dim=0))
    owns_row_and_column(followed(net, torch.randn(3, 5)))
    mixed = Net(lambda net, x: net.b(torch.linalg.cross(h := net.a(x), h.cos())), a=nn.Linear(5, 3), b=nn.Linear(3, 2))
    assert "all units mixed by" in left_alone(mixed, torch.randn(3, 5))


# -- a product of two activations with one weight ----------------------------------------------------------------------


def test_units_of_both_inputs_of_a_bilinear_layer_own_their_planes_of_its_weight():
    torch.manual_seed(0)
    net = Net(
        lambda net, x, y: net.b(F.relu(net.a(x)), F.relu(net.c(y))),
        a=nn.Linear(5, 8), c=nn.Linear(4, 6), b=nn.Bilinear(8, 6, 2),
    )  # fmt: skip
    plan = followed(net, torch.randn(4, 5), torch.randn(4, 4))
    found = {group.name: (group.outgoing[0].parameter, group.outgoing[0].axis, group.taps[0]) for group in plan.groups}
    assert [(parameter, axis, tap.module, tap.argument) for parameter, axis, tap in found.values()] == [
        ("b.weight", 1, "b", 0),
        ("b.weight", 2, "b", 1),
    ]
    assert all(not group.hand_over for group in plan.groups)  # its mean contribution depends on the other input


def test_a_unit_that_a_bilinear_layer_multiplies_with_itself_owns_both_planes():
    torch.manual_seed(0)
    net = Net(lambda net, x: net.b(h := F.relu(net.a(x)), h), a=nn.Linear(5, 8), b=nn.Bilinear(8, 8, 2))
    (group,) = followed(net, torch.randn(4, 5)).groups
    assert [(part.parameter, part.axis) for part in group.outgoing] == [("b.weight", 1), ("b.weight", 2)]


def test_rows_of_a_bilinear_layer_are_units():
    torch.manual_seed(0)
    parts = {"a": nn.Linear(5, 6), "b": nn.Bilinear(6, 4, 8, bias=False), "c": nn.Linear(8, 2)}
    net = Net(lambda net, x, y: net.c(F.relu(net.b(F.relu(net.a(x)), y))), **parts)
    plan = followed(net, torch.randn(4, 3, 5), torch.randn(4, 3, 4), name="b")
    group = next(group for group in plan.groups if group.name == "b")
    assert [(part.parameter, part.axis) for part in group.incoming] == [("b.weight", 0)]


def test_a_plane_that_another_product_computes_with_is_tied():
    """W[:, :, j] is silent in the bilinear product with y, but computes what the other product gives."""

    def run(net: Any, x: Tensor, y: Tensor) -> Tensor:
        h, g = F.relu(net.a(x)), F.relu(net.c(y))
        return F.bilinear(h, g, net.w) + net.d(F.relu(h @ net.w[0]))

    torch.manual_seed(0)
    parts = {"a": nn.Linear(5, 8), "c": nn.Linear(4, 6), "d": nn.Linear(6, 2), "w": nn.Parameter(torch.randn(2, 8, 6))}
    with pytest.raises(ValueError, match="tied: 'w' is used in two ways"):
        trace(Net(run, **parts), (torch.randn(4, 5), torch.randn(4, 4)), trial=False)


def test_a_bilinear_product_with_a_raw_weight_shows_neither_of_its_inputs():
    torch.manual_seed(0)
    parts = {"a": nn.Linear(5, 8), "w": nn.Parameter(torch.randn(2, 8, 4))}
    net, inputs = (
        Net(lambda net, x, y: F.bilinear(F.relu(net.a(x)), y, net.w), **parts),
        (torch.randn(4, 5), torch.randn(4, 4)),
    )
    (group,) = followed(net, *inputs).groups
    assert group.taps == ()
    with pytest.raises(ValueError, match="no module shows what w reads"):
        trace(net, inputs, activity=True)


def test_a_frozen_filter_of_each_channel_is_a_constant_and_a_frozen_dense_one_reads_its_units():
    torch.manual_seed(0)
    blur = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False).requires_grad_(False)
    parts = {"a": nn.Conv2d(3, 8, 1), "b": nn.Conv2d(8, 2, 1)}
    x = torch.randn(2, 3, 4, 4)
    owns_row_and_column(followed(Net(lambda net, x: net.b(net.blur(F.relu(net.a(x)))), blur=blur, **parts), x))
    dense = nn.Conv2d(8, 8, 3, padding=1).requires_grad_(False)
    assert "frozen" in left_alone(Net(lambda net, x: net.b(net.dense(F.relu(net.a(x)))), dense=dense, **parts), x)


# -- sparse tensors ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*beta")
@pytest.mark.parametrize("kind", ["to_sparse", "to_sparse_csr"])
def test_a_sparse_tensor_may_be_an_input_or_a_buffer(kind):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 2)
            self.register_buffer("graph", getattr(GRAPH, kind)())

        def forward(self, x, graph=None):
            return self.b((self.graph if graph is None else graph) @ F.relu(self.a(x)))

    torch.manual_seed(0)
    net, x = Layer(), torch.randn(4, 5)
    owns_row_and_column(followed(net, x))
    owns_row_and_column(followed(net, x, getattr(GRAPH, kind)()))


def test_a_weight_may_meet_sparse_features():
    torch.manual_seed(0)
    net = Net(
        lambda net, x: net.b(F.relu(x @ net.w + net.bias)),
        w=nn.Parameter(torch.randn(4, 8)), bias=nn.Parameter(torch.randn(8)), b=nn.Linear(8, 2),
    )  # fmt: skip
    (group,) = followed(net, GRAPH.to_sparse(), name="w").groups
    assert [(part.parameter, part.axis) for part in group.incoming] == [("w", 1), ("bias", 0)]


def test_units_that_enter_a_sparse_tensor_are_left_alone_also_where_a_weight_reads_them_too():
    def run(net: Any, x: Tensor) -> Tensor:
        h, scores = F.relu(net.a(x)), F.relu(net.scores(x))
        mixing = torch.sparse_coo_tensor(torch.stack([ROWS, torch.arange(4)]), scores[:, 0], (4, 4))
        return net.b(mixing @ h) + net.read(scores)

    torch.manual_seed(0)
    parts = {"a": nn.Linear(5, 8), "b": nn.Linear(8, 2), "scores": nn.Linear(5, 3), "read": nn.Linear(3, 2)}
    plan = trace(Net(run, **parts), torch.randn(4, 5), trial=False)
    assert [group.name for group in plan.groups] == ["a"]
    assert any("scores.weight" in each.parameters and "sparse" in each.reason for each in plan.skipped)


def test_the_columns_of_a_bag_of_embeddings_are_no_units_and_what_weighs_them_is_left_alone():
    def run(net: Any, words: Tensor, x: Tensor) -> Tensor:
        return net.b(F.relu(net.a(net.bag(words, per_sample_weights=net.weigh(F.relu(net.small(x)))))))

    torch.manual_seed(0)
    parts = {"bag": nn.EmbeddingBag(10, 5, mode="sum"), "small": nn.Linear(5, 7), "weigh": nn.Linear(7, 3)}
    net = Net(run, a=nn.Linear(5, 8), b=nn.Linear(8, 2), **parts)
    plan = followed(net, torch.randint(10, (4, 3)), torch.randn(4, 5))
    assert {group.name for group in plan.groups} == {"small", "a"}
    reasons = {name: each.reason for each in plan.skipped for name in each.parameters}
    assert "columns of the embedding" in reasons["bag.weight"]


# -- attention ---------------------------------------------------------------------------------------------------------


class GraphAttention(nn.Module):
    """Scores of each edge from sums of products, a softmax over the edges of a node (GAT)."""

    def __init__(self, heads: int, width: int = 3) -> None:
        super().__init__()
        self.heads, self.a = heads, nn.Linear(5, heads * width, bias=False)
        self.source, self.target = (nn.Parameter(torch.randn(1, heads, width)) for _ in range(2))
        self.b = nn.Linear(heads * width, 2)

    def forward(self, x: Tensor, source: Tensor, target: Tensor) -> Tensor:
        h = self.a(x).unflatten(-1, (self.heads, -1))
        scores = F.leaky_relu((h * self.source).sum(-1)[source] + (h * self.target).sum(-1)[target])
        index = target[:, None].expand(-1, self.heads)
        largest = torch.zeros(len(x), self.heads).scatter_reduce(0, index, scores.detach(), "amax", include_self=False)
        weights = (scores - largest[target]).exp()
        weights = weights / torch.zeros(len(x), self.heads).scatter_add(0, index, weights)[target]
        out = torch.zeros_like(h).index_add(0, target, h[source] * weights[..., None])
        return self.b(F.elu(out.flatten(1)))


EDGES = torch.tensor([0, 1, 2, 3, 1, 0]), torch.tensor([1, 0, 3, 2, 2, 3])


def test_a_head_of_a_graph_attention_is_one_unit_with_its_scores():
    torch.manual_seed(0)
    net, x = GraphAttention(4), torch.randn(4, 5)
    plan = followed(net, x, *EDGES)
    (group,) = plan.groups
    assert [row.units for row in plan.rows] == [4]
    assert {part.parameter: part.repeat for part in group.incoming} == {"a.weight": 3}
    assert {part.parameter: part.repeat for part in group.outgoing} == {"b.weight": 3}
    assert {each.part.parameter for each in group.affine} == {"source", "target"}


def test_a_graph_attention_of_one_head_mixes_all_of_its_units():
    assert "all units mixed by" in left_alone(GraphAttention(1), torch.randn(4, 5), *EDGES)


class Attention(nn.Module):
    """Four heads with rotary embeddings and a norm of queries and keys: of each head, or of all at once."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.norm, self.queries, self.keys = norm, *(nn.RMSNorm(16 if norm == "all" else 4) for _ in range(2))
        angles = torch.arange(6.0)[:, None] / torch.tensor([1.0, 10.0]).repeat(2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def rotated(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.norm == "all":
            q, k = self.queries(q), self.keys(k)
        q, k, v = (each.unflatten(-1, (4, 4)).transpose(1, 2) for each in (q, k, v))
        if self.norm == "head":
            q, k = self.queries(q), self.keys(k)
        if self.norm == "length":
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        found = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v, is_causal=True)
        return self.out(found.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("norm", "verdict"), [("head", "exact"), ("length", "exact"), ("all", "approximate")])
def test_heads_with_rotary_embeddings_and_normed_queries_are_units(norm, verdict):
    torch.manual_seed(0)
    net, x = Attention(norm), torch.randn(2, 6, 16)
    plan = trace(net, x, heads=True)
    (row,) = plan.rows
    assert (row.units, row.group.kind) == (4, verdict)
    assert {part.parameter for part in row.group.outgoing} == {"out.weight"}
    assert [each.verdict for each in plan.verify(net, x).rows] == [verdict]
    if norm == "head":  # one scale for all heads
        reasons = {name: each.reason for each in plan.skipped for name in each.parameters}
        assert reasons["queries.weight"] == "no unit owns it alone"
