"""Networks that start at other scales than their modules' resets, initialized as others do it, by hand."""

import math

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, INNER, BLOCKS = 32, 128, 2


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln, self.mlp = nn.LayerNorm(WIDTH), Mlp()

    def forward(self, x):
        return x + self.mlp(self.ln(x))


class Gpt(nn.Module):
    """The MLP half of GPT-2, initialized as Hugging Face does it: N(0, 0.02), what a block adds by sqrt(2 blocks) less."""

    def __init__(self, std=0.02):
        super().__init__()
        self.std = std
        self.wte = nn.Embedding(40, WIDTH)
        self.h = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.ln, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 40, bias=False)
        self.apply(self._init_weights)

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, Mlp):
            nn.init.normal_(module.c_proj.weight, std=self.std / math.sqrt(2 * BLOCKS))

    def forward(self, words):
        x = self.wte(words)
        for block in self.h:
            x = block(x)
        return self.head(self.ln(x))


class VisionMlp(nn.Module):
    """As timm's vision transformers: truncated normal."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(48, 64), nn.Linear(64, 3)
        self.apply(self._init_weights)

    def _init_weights(self, m, needs_reset=True):
        if isinstance(m, nn.Linear):
            nn.init.trunc_normal_(m.weight, std=0.02, a=-0.04, b=0.04)
            nn.init.zeros_(m.bias)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Vgg(nn.Module):
    """As torchvision's VGG: one function for all modules, N(0, 2 / fan_out), which depends on how many units there are."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 4, 3))
        self._initialize_weights()

    def _initialize_weights(self):
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, x):
        return self.features(x)


class Gated(nn.Module):
    """A SwiGLU whose gate and value start at different scales."""

    def __init__(self, gate=0.02, value=0.3):
        super().__init__()
        self.gate, self.value, self.out = (nn.Linear(*sizes, bias=False) for sizes in ((24, 64), (24, 64), (64, 2)))
        nn.init.normal_(self.gate.weight, std=gate)
        nn.init.normal_(self.value.weight, std=value)

    def forward(self, x):
        return self.out(F.silu(self.gate(x)) * self.value(x))


class Raw(nn.Module):
    """Parameters without any module that resets them."""

    def __init__(self, std=0.02):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(24, 64) * std), nn.Parameter(torch.zeros(64))
        self.out = nn.Linear(64, 2)

    def forward(self, x):
        return self.out(torch.relu(x @ self.w + self.b))


class Bell(nn.Linear):
    """A layer with a reset of its own: N(0, 1)."""

    def reset_parameters(self):
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)


def words():
    return torch.randint(40, (4, 6))


def plain(how=lambda weight: nn.init.normal_(weight, std=0.02), bias=True):
    """Three layers, their weights drawn by `how`, their biases 0."""
    model = nn.Sequential(
        nn.Linear(24, 64, bias=bias), nn.ReLU(), nn.Linear(64, 64, bias=bias), nn.ReLU(), nn.Linear(64, 2, bias=bias)
    )
    for layer in model[::2]:
        how(layer.weight)
        if bias:
            nn.init.zeros_(layer.bias)
    return model
