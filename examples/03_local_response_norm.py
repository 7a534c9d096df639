"""Local response normalization: a small example with known values, and AlexNet's layer in two conventions."""

import torch

from pliant.nn import LocalResponseNorm
from pliant.ops import local_response_norm, lrn

# 1 to 32 as two images of 2×2 pixels, with 4 channels last. Each value is divided by the sum of the squares of itself
# and two neighbours on each side.
x = torch.arange(1.0, 33.0).view(2, 2, 2, 4)
y = lrn(x, depth_radius=2, bias=0, alpha=1, beta=1)
print("first vector:", [round(v, 7) for v in y[0, 0, 0].tolist()])
print("last vector: ", [round(v, 7) for v in y[1, 1, 1].tolist()])
print(f"by hand:      1/(1 + 4 + 9) = {1 / 14:.7f}")

# AlexNet's constants. TensorFlow takes the radius of the window, and alpha multiplies the sum over the last dimension.
# PyTorch takes the size of the window, and alpha multiplies the mean over dimension 1.
maps = 20 * torch.rand(2, 96, 27, 27, dtype=torch.float64)
torch_way = local_response_norm(maps, 5, 5e-4, 0.75, 2.0)
tensorflow_way = lrn(maps.movedim(1, -1), 2, 2.0, 1e-4, 0.75).movedim(-1, 1)
print(f"largest difference of the two conventions: {(torch_way - tensorflow_way).abs().max():.1e}")

# The layer, and its effect: the strong channel suppresses its neighbours, and the other channels hardly change.
row = torch.ones(1, 9, 1, 1)
row[0, 4] = 100
out = LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)(row)
print("ones around a hundred, normalized:", [round(v, 3) for v in out.flatten().tolist()])
