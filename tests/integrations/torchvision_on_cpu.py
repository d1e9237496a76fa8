"""Importing this declares the operators of torchvision that it describes when it is imported.

Its package for GPUs, the only one that the usual index has, cannot load its compiled operators beside a PyTorch for CPUs, and fails to
import for want of their names. Nothing here calls them.
"""

import torch

LIBRARY = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
