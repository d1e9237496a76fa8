"""Importing this lets Avalanche be imported, and save a strategy, in an environment of today, with PyTorch for CPUs.

The usual index has torchvision built for GPUs alone. It cannot load its compiled operators beside a PyTorch for CPUs, and fails
to import for want of the names of two of them. They are declared here; nothing calls them. And dill looks for the class of an
optimizer at `torch.optim.adam.Adam`, where PyTorch has deleted the name `adam`.
"""

import importlib
from contextlib import suppress

import torch

with suppress(ImportError):  # torchvision is not there at all
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        LIBRARY = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

torch.optim.adam = importlib.import_module("torch.optim.adam")
