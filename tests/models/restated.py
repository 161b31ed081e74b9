"""The networks in NumPy, as functions of a PyTorch state dict and NCHW images that return (logits, features, pooled).

They are written from the papers and from the structure of the PyTorch code whose names the state dicts have; they use
nothing from kdjax.
"""

import math

import numpy as np

from tests.models.numpy_layers import (
    avg_pool,
    batch_norm,
    conv,
    gelu,
    layer_norm,
    linear,
    max_pool,
    relu,
    softmax,
)


def mean(x):
    return x.mean(axis=(2, 3))


def wide_resnet(sd, x, blocks):
    x = conv(x, sd, "conv1", padding=1)
    maps, entries = {"stem": x}, []
    for stage in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            entry = batch_norm(x, sd, f"{name}.bn1")
            if block == 0:
                entries.append(entry)
            y = conv(relu(entry), sd, f"{name}.conv1", stride, 1)
            y = conv(relu(batch_norm(y, sd, f"{name}.bn2")), sd, f"{name}.conv2", 1, 1)
            changes = f"{name}.convShortcut.weight" in sd
            x = y + (conv(relu(entry), sd, f"{name}.convShortcut", stride) if changes else x)
        maps[f"stage{stage}"] = x
    entries.append(batch_norm(x, sd, "bn1"))
    maps |= {f"stage{i}_preact": entries[i] for i in (1, 2, 3)}
    pooled = mean(relu(entries[3]))
    return linear(pooled, sd, "fc"), maps, pooled


def vgg(sd, x, blocks):
    maps, fourth = {}, x.shape[2] == 64
    for number, convolutions in enumerate(blocks):
        for i in range(convolutions):
            x = relu(x) if i else x
            x = batch_norm(conv(x, sd, f"block{number}.{3 * i}", padding=1), sd, f"block{number}.{3 * i + 1}")
        name = f"stage{number}" if number else "stem"
        maps |= {f"{name}_preact": x, name: relu(x)}
        x = relu(x)
        if number in (0, 1, 2) or (number == 3 and fourth):
            x = max_pool(x, 2, 2)
    return linear(mean(x), sd, "classifier"), maps, mean(x)


def mobilenet_v2(sd, x):
    x = batch_norm(conv(x, sd, "conv1.0", 2, 1), sd, "conv1.1")
    maps = {"stem_preact": x, "stem": relu(x)}
    x = relu(x)
    ends = {1: "stage1", 2: "stage2", 4: "stage3", 6: "stage4"}
    for group, (repeats, first) in enumerate(((1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1))):
        for i in range(repeats):
            name, stride = f"blocks.{group}.{i}.conv", first if i == 0 else 1
            y = relu(batch_norm(conv(x, sd, f"{name}.0"), sd, f"{name}.1"))
            y = relu(batch_norm(conv(y, sd, f"{name}.3", stride, 1, groups=y.shape[1]), sd, f"{name}.4"))
            y = batch_norm(conv(y, sd, f"{name}.6"), sd, f"{name}.7")
            x = x + y if stride == 1 and x.shape[1] == y.shape[1] else y
        if group in ends:
            maps[ends[group]] = x
    maps["final_preact"] = batch_norm(conv(x, sd, "conv2.0"), sd, "conv2.1")
    pooled = mean(relu(maps["final_preact"]))
    return linear(pooled, sd, "classifier.0"), maps, pooled


def mobilenet_v1(sd, x):
    x = batch_norm(conv(x, sd, "model.0.0", 2, 1), sd, "model.0.1")
    maps = {"stem_preact": x, "stem": relu(x)}
    ends = {3: "stage1", 5: "stage2", 11: "stage3", 13: "stage4"}
    for i, stride in enumerate((1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1), start=1):
        x = relu(x)
        x = relu(batch_norm(conv(x, sd, f"model.{i}.0", stride, 1, groups=x.shape[1]), sd, f"model.{i}.1"))
        x = batch_norm(conv(x, sd, f"model.{i}.3"), sd, f"model.{i}.4")
        if i in ends:
            maps |= {f"{ends[i]}_preact": x, ends[i]: relu(x)}
    pooled = mean(relu(x))
    return linear(pooled, sd, "fc"), maps, pooled


def shuffle(x, groups):
    """Moves channel j of group g to position j * groups + g."""
    per_group = x.shape[1] // groups
    order = [g * per_group + j for j in range(per_group) for g in range(groups)]
    return x[:, order]


def shufflenet_v1(sd, x, repeats, groups):
    x = batch_norm(conv(x, sd, "conv1"), sd, "bn1")
    maps = {"stem_preact": x, "stem": relu(x)}
    x = relu(x)
    for stage, units in enumerate(repeats, start=1):
        for unit in range(units):
            name, first = f"layer{stage}.{unit}", 1 if x.shape[1] == 24 else groups
            y = relu(batch_norm(conv(x, sd, f"{name}.conv1", groups=first), sd, f"{name}.bn1"))
            y = shuffle(y, first)
            y = conv(y, sd, f"{name}.conv2", 2 if unit == 0 else 1, 1, groups=y.shape[1])
            y = relu(batch_norm(y, sd, f"{name}.bn2"))
            y = batch_norm(conv(y, sd, f"{name}.conv3", groups=groups), sd, f"{name}.bn3")
            before = np.concatenate([y, avg_pool(x, 3, 2, 1)], axis=1) if unit == 0 else x + y
            x = relu(before)
        maps |= {f"stage{stage}_preact": before, f"stage{stage}": x}
    return linear(mean(x), sd, "linear"), maps, mean(x)


def shufflenet_v2(sd, x, repeats):
    def normed(x, name, i, stride=1, depthwise=False):
        groups, padding = (x.shape[1], 1) if depthwise else (1, 0)
        return batch_norm(conv(x, sd, f"{name}.conv{i}", stride, padding, groups), sd, f"{name}.bn{i}")

    x = batch_norm(conv(x, sd, "conv1"), sd, "bn1")
    maps = {"stem_preact": x, "stem": relu(x)}
    x = relu(x)
    for stage, units in enumerate(repeats, start=1):
        name = f"layer{stage}.0"
        left = relu(normed(normed(x, name, 1, 2, True), name, 2))
        right = relu(normed(normed(relu(normed(x, name, 3)), name, 4, 2, True), name, 5))
        x = shuffle(np.concatenate([left, right], axis=1), 2)
        for unit in range(1, units + 1):
            name, half = f"layer{stage}.{unit}", x.shape[1] // 2
            y = normed(normed(relu(normed(x[:, half:], name, 1)), name, 2, 1, True), name, 3)
            before = np.concatenate([x[:, :half], y], axis=1)
            x = shuffle(np.concatenate([x[:, :half], relu(y)], axis=1), 2)
        maps |= {f"stage{stage}_preact": before, f"stage{stage}": x}
    maps["final_preact"] = batch_norm(conv(x, sd, "conv2"), sd, "bn2")
    pooled = mean(relu(maps["final_preact"]))
    return linear(pooled, sd, "linear"), maps, pooled


def resnet(sd, x, *, shortcut, head, small):
    """Four stages; a block with a third convolution is a bottleneck, whose second convolution has the stride."""
    x = relu(batch_norm(conv(x, sd, "conv1", 1 if small else 2, 1 if small else 3), sd, "bn1"))
    x = x if small else max_pool(x, 3, 2, 1)
    maps, stage = {"stem": x}, 1
    while f"layer{stage}.0.conv1.weight" in sd:
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in sd:
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = x
            if f"{name}.conv3.weight" in sd:
                y = relu(batch_norm(conv(y, sd, f"{name}.conv1"), sd, f"{name}.bn1"))
                y = relu(batch_norm(conv(y, sd, f"{name}.conv2", stride, 1), sd, f"{name}.bn2"))
                y = batch_norm(conv(y, sd, f"{name}.conv3"), sd, f"{name}.bn3")
            else:
                y = relu(batch_norm(conv(y, sd, f"{name}.conv1", stride, 1), sd, f"{name}.bn1"))
                y = batch_norm(conv(y, sd, f"{name}.conv2", 1, 1), sd, f"{name}.bn2")
            if f"{name}.{shortcut}.0.weight" in sd:
                x = batch_norm(conv(x, sd, f"{name}.{shortcut}.0", stride), sd, f"{name}.{shortcut}.1")
            before = x + y
            x, block = relu(before), block + 1
        maps |= {f"stage{stage}_preact": before, f"stage{stage}": x}
        stage += 1
    return linear(mean(x), sd, head), maps, mean(x)


def densenet(sd, x, layers):
    x = conv(x, sd, "conv1", padding=1)
    maps = {"stem": x}
    for block in (1, 2, 3):
        for i in range(layers):
            name = f"block{block}.layer.{i}"
            y = relu(batch_norm(x, sd, f"{name}.bn1"))
            if f"{name}.conv2.weight" in sd:
                y = relu(batch_norm(conv(y, sd, f"{name}.conv1"), sd, f"{name}.bn2"))
                y = conv(y, sd, f"{name}.conv2", padding=1)
            else:
                y = conv(y, sd, f"{name}.conv1", padding=1)
            x = np.concatenate([x, y], axis=1)
        maps[f"stage{block}"] = x
        if block < 3:
            x = avg_pool(conv(relu(batch_norm(x, sd, f"trans{block}.bn1")), sd, f"trans{block}.conv1"), 2, 2)
    maps["stage3_preact"] = batch_norm(x, sd, "bn1")
    pooled = mean(relu(maps["stage3_preact"]))
    return linear(pooled, sd, "fc"), maps, pooled


def vision_transformer(sd, x, *, patch, depth, heads):
    """Under timm's names. Layer scales and a position of the class token are used if the state dict has them."""
    stem = conv(x, sd, "patch_embed.proj", stride=patch)
    batch, dim, height, width = stem.shape
    tokens = stem.reshape(batch, dim, -1).swapaxes(1, 2)
    class_token = np.repeat(sd["cls_token"], batch, axis=0)
    if sd["pos_embed"].shape[1] == tokens.shape[1]:
        x = np.concatenate([class_token, tokens + sd["pos_embed"]], axis=1)
    else:
        x = np.concatenate([class_token, tokens], axis=1) + sd["pos_embed"]
    maps = {"stem": stem}
    for i in range(depth):
        name = f"blocks.{i}"
        y = linear(layer_norm(x, sd, f"{name}.norm1"), sd, f"{name}.attn.qkv")
        out = np.zeros_like(x)
        for h in range(heads):
            part = dim // heads
            q, k, v = (y[..., j * dim + h * part : j * dim + (h + 1) * part] for j in range(3))
            out[..., h * part : (h + 1) * part] = softmax(q @ k.swapaxes(1, 2) / math.sqrt(part)) @ v
        x = x + sd.get(f"{name}.ls1.gamma", 1) * linear(out, sd, f"{name}.attn.proj")
        y = gelu(linear(layer_norm(x, sd, f"{name}.norm2"), sd, f"{name}.mlp.fc1"))
        x = x + sd.get(f"{name}.ls2.gamma", 1) * linear(y, sd, f"{name}.mlp.fc2")
        if i < 2:
            maps[f"tokens{i + 1}"] = x[:, 1:]
        if (i + 1) % (depth // 4) == 0:
            maps[f"stage{(i + 1) // (depth // 4)}"] = x[:, 1:].swapaxes(1, 2).reshape(stem.shape)
    pooled = layer_norm(x, sd, "norm")[:, 0]
    return linear(pooled, sd, "head"), maps, pooled


def basic_block(sd, x, name, stride):
    y = relu(batch_norm(conv(x, sd, f"{name}.conv1", stride, 1), sd, f"{name}.bn1"))
    y = batch_norm(conv(y, sd, f"{name}.conv2", 1, 1), sd, f"{name}.bn2")
    if f"{name}.downsample.0.weight" in sd:
        x = batch_norm(conv(x, sd, f"{name}.downsample.0", stride), sd, f"{name}.downsample.1")
    return x + y


def auxiliary_resnet(sd, x):
    """HSAKD's network: a ResNet on each rotation, and branches that continue from its stages."""
    rotated, joint, first = [], {}, None
    for turns in range(4):
        y = batch_norm(conv(np.rot90(x, turns, (2, 3)), sd, "backbone.conv1", 1, 1), sd, "backbone.bn1")
        maps = {"stem_preact": y, "stem": relu(y)}
        y = relu(y)
        for stage in (1, 2, 3):
            for block in range(sum(f"backbone.layer{stage}.{i}.conv1.weight" in sd for i in range(20))):
                before = basic_block(sd, y, f"backbone.layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1)
                y = relu(before)
            maps |= {f"stage{stage}_preact": before, f"stage{stage}": y}
        rotated.append(linear(mean(y), sd, "backbone.fc"))
        first = first or (maps, mean(y))
        for branch in (1, 2, 3):
            z, part = maps[f"stage{branch}"], 0
            while f"auxiliary_classifier.block_extractor{branch}.{part}.0.conv1.weight" in sd:
                name, block = f"auxiliary_classifier.block_extractor{branch}.{part}", 0
                while f"{name}.{block}.conv1.weight" in sd:
                    z = relu(basic_block(sd, z, f"{name}.{block}", 2 if branch < 3 and block == 0 else 1))
                    block += 1
                part += 1
            joint.setdefault(f"auxiliary{branch}", []).append(linear(mean(z), sd, f"auxiliary_classifier.fc{branch}"))
    maps, pooled = first
    maps = {**maps, "rotated": np.stack(rotated, 1), **{name: np.stack(parts, 1) for name, parts in joint.items()}}
    return rotated[0], maps, pooled
