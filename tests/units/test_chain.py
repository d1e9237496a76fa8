from collections import OrderedDict

import pytest
from torch import nn

from pliant.units import BN, Slice, Tap, chain_groups


def test_an_mlp_has_one_group_for_each_layer_but_the_last():
    net = nn.Sequential(
        nn.Linear(3, 5), nn.Tanh(), nn.Dropout(0.1), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 2)
    )
    first, second = chain_groups(net)
    assert first.incoming == [Slice("0.weight", 0), Slice("0.bias", 0)]
    assert first.outgoing == [Slice("3.weight", 1)]
    assert first.tap == Tap("3", axis=-1)
    assert first.gain == pytest.approx(5 / 3)
    assert first.hand_over == {}
    assert second.incoming == [Slice("3.weight", 0)]
    assert second.hand_over == {"5.weight": "5.bias"}
    assert second.gain == pytest.approx(2**0.5)


def test_a_nested_convnet_with_batch_norms_and_a_flatten():
    net = nn.Sequential(
        OrderedDict(
            block=nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            conv=nn.Conv2d(8, 4, 3, bias=False),
            norm=nn.BatchNorm2d(4),
            flat=nn.Flatten(),
            head=nn.Linear(4 * 9, 10),
        )
    )
    first, second = chain_groups(net)
    assert first.name == "block.0"
    assert first.affine == [BN("block.1")]
    assert first.tap == Tap("conv", axis=1)
    assert first.hand_over == {"conv.weight": BN("norm")}
    assert second.outgoing == [Slice("head.weight", 1, repeat=9)]
    assert second.affine == [BN("norm")]


def test_a_batch_norm_behind_the_flatten_has_several_channels_a_unit():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 1))
    (group,) = chain_groups(net)
    assert group.affine == [BN("2", repeat=4)]


def test_a_batch_norm_behind_an_activation_takes_no_mean_over():
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4, bias=False), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 1))
    assert chain_groups(net)[0].hand_over == {}


def shared():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(4, 1))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def tied():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    net[2].weight = net[0].weight
    return net


def test_a_batch_norm_without_running_statistics_centers_by_itself():
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4, bias=False), norm, nn.Linear(4, 1))
    assert chain_groups(net)[0].hand_over == {}


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (
            nn.Sequential(nn.Linear(3, 3), Residual(nn.Linear(3, 3)), nn.Linear(3, 1)),
            r"'1' \(Residual\) stands between",
        ),
        (Residual(nn.Linear(3, 3), nn.Linear(3, 3)), "reads nn.Sequential, not Residual"),
        (nn.Sequential(nn.Linear(3, 4), nn.Flatten(), nn.Linear(8, 1)), "a multiple from Conv2d through Flatten"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(4, 1)), r"'0' \(Conv2d, 4 units\) feeds '1' \(Linear"),
        (nn.Sequential(nn.Linear(3, 4), nn.Conv2d(4, 1, 1)), "sizes must be equal within a kind"),
        (tied(), "'2' is used twice"),
        (nn.Sequential(nn.LazyLinear(4), nn.LazyLinear(1)), "as '0.weight' is lazy: run one forward first"),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)), r"'1' \(LayerNorm\) stands between"),
        (nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 1)), r"'1' \(Softmax\) stands between"),
        (nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 1)), r"'1' \(PReLU\)"),
        (
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 1, 3)),
            "'1' is a grouped convolution",
        ),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(8, 1)), r"'0' \(Linear, 4 units\) feeds '1' \(Linear, 8 inputs"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(2), nn.Linear(4, 1)), r"'1' \(Flatten\)"),
        (nn.Sequential(nn.Linear(3, 4)), "has no hidden units"),
        (nn.Linear(3, 4), "reads nn.Sequential, not Linear"),
        (shared(), "'2' is used twice"),
    ],
)
def test_what_a_chain_cannot_hold_is_named(net, message):
    with pytest.raises(ValueError, match=message):
        chain_groups(net)


def test_what_stands_behind_the_last_weight_layer_does_not_matter():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softmax(-1))
    assert len(chain_groups(net)) == 1
