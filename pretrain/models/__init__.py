"""Models: the two towers and CLIP. Importing this package makes timm importable everywhere."""

from pretrain.base import compat

compat.make_torchvision_importable()
