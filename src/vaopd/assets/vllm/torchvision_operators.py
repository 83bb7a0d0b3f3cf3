"""Installed as ``sitecustomize`` of the vLLM environment: lets torchvision load beside a CPU torch.

Its wheels bring their operators in a library that wants CUDA. torchvision registers further kernels
for two of them when it is imported, so these two must have been declared by then.
"""

import sys
from importlib.abc import MetaPathFinder

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class DeclareOperators(MetaPathFinder):
    """Acts at the import of torchvision: an interpreter that never needs it stays quick."""

    def find_spec(self, fullname, path=None, target=None):
        """Declare the operators once; find nothing."""
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            global library  # a library that is collected takes its operators along
            library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                library.define(f"{name}{SCHEMA}")
        return None


sys.meta_path.insert(0, DeclareOperators())
