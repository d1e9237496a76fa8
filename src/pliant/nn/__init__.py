"""Networks, layers and activations."""

from pliant.nn.online_norm import OnlineNorm1d as OnlineNorm1d
from pliant.nn.stacked import StackedConv2d as StackedConv2d
from pliant.nn.stacked import StackedLinear as StackedLinear
