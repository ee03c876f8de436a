"""The method restated in torch under the authors' parameter names: for parity tests and timing.

Written from design section 3 and the paper, plain: one side after the other, all four pyramid
levels on every canvas, as the authors' code computes it. Needs torch (the extra `torch`). Shapes
are torch's: [n, C, H, W]. `weights` is a state_dict of leaf tensors; running statistics in it are
updated in place by the forward, as torch does.
"""

import torch
import torch.nn.functional as F


def conv(weights, name, x, stride=1):
    kernel = weights[f"{name}.weight"]
    return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)


def norm(weights, name, x):
    return F.batch_norm(
        x,
        weights[f"{name}.running_mean"],
        weights[f"{name}.running_var"],
        weights.get(f"{name}.weight"),
        weights.get(f"{name}.bias"),
        training=True,
        momentum=0.1,
        eps=1e-5,
    )


def linear(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def block(weights, name, x, stride):
    convs = 3 if f"{name}.conv3.weight" in weights else 2
    y = x
    for i in range(1, convs + 1):
        strided = i == (2 if convs == 3 else 1)
        y = conv(weights, f"{name}.conv{i}", x=y, stride=stride if strided else 1)
        y = norm(weights, f"{name}.bn{i}", y)
        if i < convs:
            y = F.relu(y)
    if f"{name}.downsample.0.weight" in weights:
        x = conv(weights, f"{name}.downsample.0", x=x, stride=stride)
        x = norm(weights, f"{name}.downsample.1", x)
    return F.relu(x + y)


def resnet(weights, prefix, x):
    x = F.relu(norm(weights, f"{prefix}.bn1", conv(weights, f"{prefix}.conv1", x=x, stride=2)))
    x = F.max_pool2d(x, 3, 2, 1)
    stages = []
    for layer in range(1, 5):
        index = 0
        while f"{prefix}.layer{layer}.{index}.conv1.weight" in weights:
            stride = 2 if layer > 1 and index == 0 else 1
            x = block(weights, f"{prefix}.layer{layer}.{index}", x=x, stride=stride)
            index += 1
        stages.append(x)
    return stages


def fpn(weights, prefix, stages):
    laterals = []
    for i, x in enumerate(stages):
        name = f"{prefix}.lateral_convs.{i}"
        laterals.append(norm(weights, f"{name}.bn", conv(weights, f"{name}.conv", x)))
    for i in (3, 2, 1):
        up = F.interpolate(laterals[i], scale_factor=2, mode="nearest")
        laterals[i - 1] = laterals[i - 1] + up
    outputs = []
    for i, x in enumerate(laterals):
        name = f"{prefix}.fpn_convs.{i}"
        outputs.append(norm(weights, f"{name}.bn", conv(weights, f"{name}.conv", x)))
    return outputs


def head(weights, prefix, features, tile):
    """[n, C, g*t, g*t] -> [n, g*g, D]; tiles are cut before the convolutions."""
    n, channels, height, _ = features.shape
    grid = height // tile
    x = features.reshape(n, channels, grid, tile, grid, tile).permute(0, 2, 4, 1, 3, 5)
    x = x.reshape(-1, channels, tile, tile)
    i = 0
    while f"{prefix}.cls_convs.{i}.conv.weight" in weights:
        x = conv(weights, f"{prefix}.cls_convs.{i}.conv", x)
        x = F.relu(norm(weights, f"{prefix}.cls_convs.{i}.bn", x))
        i += 1
    x = x.mean((2, 3))
    x = F.relu(norm(weights, f"{prefix}.mlp.1", linear(weights, f"{prefix}.mlp.0", x)))
    x = norm(weights, f"{prefix}.mlp.4", linear(weights, f"{prefix}.mlp.3", x))
    return x.reshape(n, grid * grid, -1)


def encoder(weights, prefix, canvases):
    """[n, 3, H, H] -> embeddings of P2..P5, each [n, tiles, D]."""
    tile = canvases.shape[-1] // 32
    pyramid = fpn(weights, f"{prefix}.1", resnet(weights, f"{prefix}.0", canvases))
    return [head(weights, f"{prefix}.2", features=p, tile=tile) for p in pyramid]


def predictor(weights, level, x):
    name = f"head.predictor.{level}.mlp"
    x = F.relu(norm(weights, f"{name}.1", linear(weights, f"{name}.0", x)))
    return linear(weights, f"{name}.3", x)


def loss(weights, canvases, labels, counts, level_weights, temperature):
    """Both sides' loss.

    Args:
      canvases: (q, k), each [n, 3, H, H], ordered by level.
      labels: per level (q, k) long tensors of image numbers.
      counts: canvases per level.
    """
    online = [encoder(weights, "encoder_q", side) for side in canvases]
    with torch.no_grad():
        targets = [encoder(weights, "encoder_k", side) for side in canvases]
    targets = [F.normalize(t[-1][: counts[0]].reshape(-1, t[-1].shape[-1]), dim=1) for t in targets]
    total = 0.0
    for level, count in enumerate(counts):
        start = sum(counts[:level])
        for side in (0, 1):
            features = online[side][-1 - level][start : start + count]
            u = predictor(weights, level, features.reshape(-1, features.shape[-1]))
            logits = F.normalize(u, dim=1) @ targets[1 - side].T / temperature
            entropy = F.cross_entropy(logits, labels[level][side])
            total = total + 2 * temperature * level_weights[level] * entropy
    return total


def lars_step(weights, gradients, buffers, *, lr, eta, momentum, decay, clip, excluded):
    """One LARS step in place, the learning rate inside the momentum buffer."""
    norm_of_all = torch.sqrt(sum(g.square().sum() for g in gradients.values()))
    factor = min(1.0, clip / (float(norm_of_all) + 1e-6))
    for name, g in gradients.items():
        w, g = weights[name].data, g * factor
        if not excluded(name):
            rate = eta * w.norm() / (g.norm() + decay * w.norm())
            g = rate * (g + decay * w)
        if name not in buffers:
            buffers[name] = torch.zeros_like(w)
        w -= buffers[name].mul_(momentum).add_(lr * g)


def ema_step(weights, m):
    """encoder_k <- m encoder_k + (1 - m) encoder_q, parameters only."""
    for name, value in weights.items():
        if name.startswith("encoder_k.") and "running" not in name:
            online = weights[name.replace("encoder_k.", "encoder_q.")].data
            value.data.mul_(m).add_((1 - m) * online)


def from_names(names, memory_format=torch.contiguous_format, device="cpu"):
    """Arrays under the authors' names -> `weights`; the online network's parameters need gradients."""
    weights = {}
    for name, value in names.items():
        tensor = torch.tensor(value, device=device)
        if tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=memory_format)
        trained = "running" not in name and not name.startswith("encoder_k.")
        weights[name] = tensor.requires_grad_(trained)
    return weights


def gradients(weights, value):
    """name -> gradient of a loss, of everything that is trained."""
    trained = [name for name, tensor in weights.items() if tensor.requires_grad]
    values = torch.autograd.grad(value, [weights[name] for name in trained])
    return dict(zip(trained, values, strict=True))
