"""Networks, layers and activations."""

from pliant.nn.aid import AID as AID
from pliant.nn.conversion import Conversion as Conversion
from pliant.nn.conversion import convert as convert
from pliant.nn.crelu import CReLU as CReLU
from pliant.nn.deep_fourier import DeepFourier as DeepFourier
from pliant.nn.input_norm import InputNorm as InputNorm
from pliant.nn.online_norm import OnlineNorm1d as OnlineNorm1d
from pliant.nn.smooth_leaky_relu import SmoothLeakyReLU as SmoothLeakyReLU
from pliant.nn.stacked import StackedConv2d as StackedConv2d
from pliant.nn.stacked import StackedLinear as StackedLinear
from pliant.nn.weight_decay import decay_groups as decay_groups
