import pytest
import torch
from torch import nn

from pliant import ContinualBackprop
from pliant.experiments.images.residual import Block, ResidualNet, article_groups, he_normal, initialize
from pliant.experiments.images.residual_learner import unit_groups
from pliant.methods import reset_network
from pliant.units import trace


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ResidualNet(classes=10, width=4)


def test_the_network_of_the_article_has_11_224_932_parameters():
    with torch.device("meta"):
        network = ResidualNet(classes=100)
    assert sum(parameter.numel() for parameter in network.parameters()) == 11_224_932
    assert all(module.bias is not None for module in network.modules() if isinstance(module, nn.Conv2d))


def test_it_has_17_hidden_layers_of_3904_units_and_maps_of_32_16_8_and_4_pixels():
    with torch.device("meta"):
        hidden = list(ResidualNet(classes=100).eval().hidden(torch.zeros(1, 3, 32, 32)))
    assert sum(h.shape[1] for h in hidden) == 3904
    assert [tuple(h.shape[1:3]) for h in hidden[:-1]] == (
        [(64, 32)] * 5 + [(128, 16)] * 4 + [(256, 8)] * 4 + [(512, 4)] * 3
    )
    assert hidden[-1].shape == (1, 512)


def test_the_last_hidden_layer_is_what_the_head_reads(network):
    x = torch.randn(3, 3, 32, 32)
    *_, last = network.hidden(x)
    assert torch.equal(network.head(last), network(x))


def test_weights_start_from_a_normal_distribution_by_fan_in():
    torch.manual_seed(1)
    network = ResidualNet(classes=100, width=16)
    block = network.blocks[7]
    assert isinstance(block, Block)
    assert float(block.conv1.weight.detach().std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert float(network.head.weight.detach().std()) == pytest.approx((1 / 128) ** 0.5, rel=0.02)
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias"))
    fresh = he_normal("", (500, 8, 3, 3), torch.Generator().manual_seed(0))
    assert float(fresh.std()) == pytest.approx((2 / 72) ** 0.5, rel=0.02)


def test_a_reset_network_equals_one_that_is_built_then(network):
    torch.manual_seed(5)
    built = ResidualNet(classes=10, width=4)
    torch.manual_seed(6)
    other = ResidualNet(classes=10, width=4)
    reset_network(other, seed=7, init=initialize)
    again = ResidualNet(classes=10, width=4)
    reset_network(again, seed=7, init=initialize)
    assert torch.equal(other.head.weight, again.head.weight)
    assert torch.equal(other.stem.weight, again.stem.weight)
    assert not torch.equal(other.stem.weight, built.stem.weight)


def test_tracing_finds_the_units_inside_blocks_and_on_request_the_channels_of_the_stages(network):
    inner = unit_groups(network, "traced", channels=3)
    assert [row.group.name for row in inner.rows] == [f"blocks.{number}.conv1" for number in range(8)]
    coupled = unit_groups(network, "traced-residual", channels=3)
    assert len(coupled.rows) == 12
    assert [row.units for row in coupled.rows if "conv1" not in row.group.name] == [4, 8, 16, 32]
    assert trace(network, torch.zeros(2, 3, 32, 32), residual=True).groups == coupled.groups  # and none fails its trial


def test_the_articles_pairing_is_what_tracing_finds_inside_blocks_and_changes_the_function_elsewhere(network):
    x = torch.randn(2, 3, 32, 32)
    by_hand = {group.name: group for group in article_groups(network)}
    assert len(by_hand) == 17
    for row in trace(network, x).rows:
        ours = by_hand[row.group.name]
        assert (ours.incoming, ours.outgoing) == (row.group.incoming, row.group.outgoing)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with ContinualBackprop(network, optimizer, groups=list(by_hand.values())) as cbp:
        verification = cbp.plan.verify(network, x)
    wrong = sorted(each.group.name for each in verification.wrong)
    assert wrong == sorted(["stem", *(f"blocks.{number}.conv2" for number in range(7))])
