"""Local response normalization: the numbers of the classic example, and one network in two conventions."""

import torch

from pliant.nn import LocalResponseNorm
from pliant.ops import local_response_norm, lrn

# 1 to 32 as two pictures of 2×2 with 4 channels at the end; each value is divided by the energy of itself and two
# neighbours a side.
x = torch.arange(1.0, 33.0).view(2, 2, 2, 4)
y = lrn(x, depth_radius=2, bias=0, alpha=1, beta=1)
print("first vector:", [round(v, 7) for v in y[0, 0, 0].tolist()])
print("last vector: ", [round(v, 7) for v in y[1, 1, 1].tolist()])
print(f"by hand:      1/(1 + 4 + 9) = {1 / 14:.7f}")

# AlexNet's constants. TensorFlow counts a radius and weights the sum over the last dimension; PyTorch counts the whole
# window and weights the mean over dimension 1.
maps = 20 * torch.rand(2, 96, 27, 27, dtype=torch.float64)
torch_way = local_response_norm(maps, 5, 5e-4, 0.75, 2.0)
tensorflow_way = lrn(maps.movedim(1, -1), 2, 2.0, 1e-4, 0.75).movedim(-1, 1)
print(f"largest difference of the two conventions: {(torch_way - tensorflow_way).abs().max():.1e}")

# As a layer, and what it does: the strong channel silences its neighbours, the rest of the row hardly changes.
row = torch.ones(1, 9, 1, 1)
row[0, 4] = 100
out = LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)(row)
print("ones around a hundred, normalized:", [round(v, 3) for v in out.flatten().tolist()])
