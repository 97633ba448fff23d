"""Quantizing a matrix into the published layouts, number by number and apart from the code under test.

Every writer gives the tensors that a checkpoint has for one layer, by their names below it, and the weight
``[out, in]`` that they stand for.
"""

import numpy as np
import torch

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def codes(weight, bits, group_of, groups, *, symmetric):
    """(codes, zero points and scales by row and group, the weight they stand for), all ``[out, …]``."""
    most = 2**bits - 1
    zeros, scales = np.zeros((len(weight), groups), int), np.zeros((len(weight), groups), np.float16)
    for group in range(groups):
        part = weight[:, group_of == group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            low, high = -np.maximum(-low, high), np.maximum(-low, high)
        scales[:, group] = (high - low) / most
        zeros[:, group] = (most + 1) // 2 if symmetric else np.round(-low / scales[:, group].astype(float))
    scale, zero = scales[:, group_of].astype(np.float32), zeros[:, group_of]
    found = np.clip(np.round(weight / scale) + zero, 0, most).astype(int)
    return found, zeros, scales, ((found - zero) * scale).astype(np.float32)


def words(numbers, bits, order=None):
    """Whole numbers ``[rows, n]`` packed along the second dimension into int32 ``[rows, n * bits / 32]``."""
    count = 32 // bits
    packed = np.zeros((len(numbers), numbers.shape[1] // count), np.uint32)
    for column in range(packed.shape[1]):
        for place in range(count):
            source = column * count + (place if order is None else order[place])
            packed[:, column] |= numbers[:, source].astype(np.uint32) << np.uint32(bits * place)
    return torch.from_numpy(packed.view(np.int32))


def gptq(weight, *, bits=4, group=32, ordered=False, symmetric=False, version=1, seed=0):
    width = weight.shape[1]
    group_of = np.arange(width) // group
    if ordered:
        np.random.default_rng(seed).shuffle(group_of)
    found, zeros, scales, stands_for = codes(weight.numpy(), bits, group_of, -(-width // group), symmetric=symmetric)
    stored = (zeros - 1) % 2**bits if version == 1 else zeros
    tensors = {
        "qweight": words(found, bits).t().contiguous(),
        "qzeros": words(stored.T, bits),
        "scales": torch.from_numpy(scales.T.copy()),
        "g_idx": torch.from_numpy(group_of.astype(np.int32)),
    }
    return tensors, torch.from_numpy(stands_for)


def awq(weight, *, group=32):
    width = weight.shape[1]
    found, zeros, scales, stands_for = codes(
        weight.numpy(), 4, np.arange(width) // group, width // group, symmetric=False
    )
    tensors = {
        "qweight": words(found.T, 4, AWQ_ORDER),
        "qzeros": words(zeros.T, 4, AWQ_ORDER),
        "scales": torch.from_numpy(scales.T.copy()),
    }
    return tensors, torch.from_numpy(stands_for)


def fp8(weight, *, block=None, input_scale=None):
    """One scale for the matrix, or one for each block."""
    rows, width = weight.shape
    tall, wide = block or (rows, width)
    scales = torch.zeros(-(-rows // tall), -(-width // wide))
    held, stands_for = torch.zeros(rows, width, dtype=torch.float8_e4m3fn), torch.zeros(rows, width)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (slice(i * tall, (i + 1) * tall), slice(j * wide, (j + 1) * wide))
            scales[i, j] = weight[at].abs().max() / 448
            held[at] = (weight[at] / scales[i, j]).to(torch.float8_e4m3fn)
            stands_for[at] = held[at].float() * scales[i, j]
    tensors = {"weight": held, **({"weight_scale_inv": scales} if block else {"weight_scale": scales[0, 0]})}
    if input_scale is not None:
        tensors["input_scale"] = torch.tensor(input_scale)
    return tensors, stands_for
