"""torch modules that are called as in torchvision's detectors and in MMDetection, written for tests.

Shapes: [N, C, H, W]; tokens [N, H, W, C]. `load_state_dict(strict=True)` checks every name.
"""

from torch_or_skip import torch

F, nn = torch.nn.functional, torch.nn


class Bottleneck(nn.Module):
    def __init__(self, inputs, features, stride):
        super().__init__()
        outputs = 4 * features
        self.conv1, self.bn1 = nn.Conv2d(inputs, features, 1, bias=False), nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv3, self.bn3 = nn.Conv2d(features, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class BasicBlock(nn.Module):
    def __init__(self, inputs, features, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.downsample = None
        if stride != 1 or inputs != features:
            shortcut = nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(features))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Of bottlenecks, or of basic blocks: ResNet-18 and 34."""

    def __init__(self, width, counts=(3, 4, 6, 3), bottleneck=True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        inputs, block = width, Bottleneck if bottleneck else BasicBlock
        for i, count in enumerate(counts):
            blocks = []
            for b in range(count):
                blocks.append(block(inputs, width * 2**i, 2 if b == 0 and i else 1))
                inputs = (4 if bottleneck else 1) * width * 2**i
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x, maps = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1), []
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
            maps.append(x)
        return maps


def conv(inputs, outputs, size, library, norm=True):
    """Convolution with its norm, as the library nests it."""
    layer = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=not norm)
    if library == "torchvision":
        return nn.Sequential(layer, *([nn.BatchNorm2d(outputs)] if norm else []))
    module = nn.Module()
    module.conv, module.forward = layer, lambda x: layer(x)
    if norm:
        module.bn = nn.BatchNorm2d(outputs)
        module.forward = lambda x: module.bn(layer(x))
    return module


class Detector(nn.Module):
    """Backbone, FPN and the convolutions of the box head; returns res2..res5, P2..P5 and head."""

    def __init__(self, library, backbone, channels, features, convs, norm=True):
        super().__init__()
        laterals = nn.ModuleList(
            conv(c, features, size=1, library=library, norm=norm) for c in channels
        )
        outputs = nn.ModuleList(
            conv(features, features, size=3, library=library, norm=norm) for _ in channels
        )
        head = [conv(features, features, size=3, library=library) for _ in range(convs)]
        self.parts = (backbone, laterals, outputs, head)
        if library == "torchvision":
            self.backbone, self.roi_heads = nn.Module(), nn.Module()
            self.backbone.body, self.backbone.fpn = backbone, nn.Module()
            self.backbone.fpn.inner_blocks, self.backbone.fpn.layer_blocks = laterals, outputs
            self.roi_heads.box_head = nn.Sequential(*head)
        else:
            self.backbone, self.neck, self.roi_head = backbone, nn.Module(), nn.Module()
            self.neck.lateral_convs, self.neck.fpn_convs = laterals, outputs
            self.roi_head.bbox_head = nn.Module()
            self.roi_head.bbox_head.shared_convs = nn.ModuleList(head)

    def forward(self, images, rois):
        backbone, laterals, outputs, head = self.parts
        stages, top, maps = backbone(images), None, {}
        for i in (3, 2, 1, 0):
            lateral = laterals[i](stages[i])
            top = lateral if top is None else lateral + F.interpolate(top, scale_factor=2.0)
            maps |= {f"res{i + 2}": stages[i], f"P{i + 2}": outputs[i](top)}
        for layer in head:
            rois = F.relu(layer(rois))
        return maps | {"head": rois}


class Attention(nn.Module):
    """MMDetection's WindowMSA in a ShiftWindowMSA: parameters below `w_msa`."""

    def __init__(self, channels, heads, window, shift):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.w_msa = nn.Module()
        self.w_msa.qkv = nn.Linear(channels, 3 * channels)
        self.w_msa.proj = nn.Linear(channels, channels)
        table = torch.zeros((2 * window - 1) ** 2, heads)
        self.w_msa.relative_position_bias_table = nn.Parameter(table)
        self.w_msa.register_buffer(
            "relative_position_index", torch.zeros(window**2, window**2, dtype=torch.int64)
        )

    def forward(self, x):
        n, height, width, channels = x.shape
        w = self.window
        x = F.pad(x, (0, 0, 0, -width % w, 0, -height % w))
        padded = x.shape[1:3]
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        # which tokens were neighbors: those of the same number, in both directions
        number = torch.zeros(padded)
        for axis, size in enumerate(padded):
            place = torch.arange(size)
            region = (place >= size - w).long() + (place >= size - self.shift).long()
            number += 3**axis * (region[:, None] if axis == 0 else region) if self.shift else 0
        tokens, number = self.windows(x), self.windows(number[None, :, :, None])[..., 0]
        q, k, v = self.w_msa.qkv(tokens).reshape(*tokens.shape[:2], 3, self.heads, -1).unbind(2)
        logits = torch.einsum("blhd,bmhd->bhlm", q, k) * q.shape[-1] ** -0.5
        table = self.w_msa.relative_position_bias_table
        logits = logits + table[self.w_msa.relative_position_index].permute(2, 0, 1)
        apart = number[:, :, None] != number[:, None]
        logits = logits - 100.0 * apart.repeat(n, 1, 1)[:, None]
        y = torch.einsum("bhlm,bmhd->blhd", logits.softmax(-1), v).reshape(tokens.shape)
        y = self.w_msa.proj(y).reshape(n, padded[0] // w, padded[1] // w, w, w, channels)
        y = y.permute(0, 1, 3, 2, 4, 5).reshape(n, *padded, channels)
        return torch.roll(y, (self.shift, self.shift), (1, 2))[:, :height, :width]

    def windows(self, x):
        n, height, width, channels = x.shape
        w = self.window
        x = x.reshape(n, height // w, w, width // w, w, channels)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, channels)


class SwinBlock(nn.Module):
    def __init__(self, channels, heads, window, shift, mlp_ratio):
        super().__init__()
        hidden = mlp_ratio * channels
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn, self.ffn = Attention(channels, heads, window=window, shift=shift), nn.Module()
        first = nn.Sequential(nn.Linear(channels, hidden), nn.GELU())
        self.ffn.layers = nn.ModuleList([first, nn.Linear(hidden, channels)])

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        first, second = self.ffn.layers
        return x + second(first(self.norm2(x)))


class Swin(nn.Module):
    """MMDetection's SwinTransformer; patch merging by nn.Unfold at the end of a stage."""

    def __init__(self, width, depths, window, head_channels, mlp_ratio):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.projection = nn.Conv2d(3, width, 4, 4)
        self.patch_embed.norm = nn.LayerNorm(width)
        self.stages = nn.ModuleList()
        for i, depth in enumerate(depths):
            stage, channels = nn.Module(), width * 2**i
            heads = max(1, channels // head_channels)
            stage.blocks = nn.ModuleList(
                SwinBlock(
                    channels,
                    heads,
                    window=window,
                    shift=window // 2 if b % 2 else 0,
                    mlp_ratio=mlp_ratio,
                )
                for b in range(depth)
            )
            if i + 1 < len(depths):
                stage.downsample = nn.Module()
                stage.downsample.norm = nn.LayerNorm(4 * channels)
                stage.downsample.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
            self.stages.append(stage)
            setattr(self, f"norm{i}", nn.LayerNorm(channels))

    def forward(self, images):
        x = self.patch_embed.norm(self.patch_embed.projection(images).permute(0, 2, 3, 1))
        maps = []
        for i, stage in enumerate(self.stages):
            for block in stage.blocks:
                x = block(x)
            maps.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2))
            if hasattr(stage, "downsample"):
                n, height, width, _ = x.shape
                x = F.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
                x = stage.downsample.reduction(stage.downsample.norm(x))
                x = x.reshape(n, height // 2, width // 2, -1)
        return maps
