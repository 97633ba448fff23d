"""The C interface, mirrored for ctypes: argument structures and signatures of `native/bestiary_cpu.h`."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p

ABI = 2
FORKED, BUSY = 1, 2
"""What `bst_run` answers in a process that has only a copy of the pool, and while another thread is in it."""


class PackArgs(ctypes.Structure):
    _fields_ = [
        ("format", c_int32), ("source", c_void_p), ("source_stride", c_int64), ("n_out", c_int64), ("n_in", c_int64),
        ("packed", c_void_p),
    ]  # fmt: skip


class DecodeArgs(ctypes.Structure):
    _fields_ = [
        ("format", c_int32), ("packed", c_void_p), ("n_out", c_int64), ("n_in", c_int64), ("ids", c_void_p),
        ("count", c_int64), ("out", c_void_p), ("out_stride", c_int64),
    ]  # fmt: skip


class QuantizeArgs(ctypes.Structure):
    _fields_ = [
        ("format", c_int32), ("source", c_void_p), ("source_stride", c_int64), ("n_out", c_int64), ("n_in", c_int64),
        ("blocks", c_void_p),
    ]  # fmt: skip


class PrepareArgs(ctypes.Structure):
    _fields_ = [
        ("quantized", c_int32), ("x", c_void_p), ("x_stride", c_int64), ("rows_of", c_void_p), ("rows", c_int64),
        ("n_in", c_int64), ("prepared", c_void_p), ("tiles", c_void_p),
    ]  # fmt: skip


class MatmulArgs(ctypes.Structure):
    _fields_ = [
        ("format", c_int32), ("weight", c_void_p), ("prepared", c_void_p), ("rows", c_int64), ("n_out", c_int64),
        ("n_in", c_int64), ("out", c_void_p), ("out_stride", c_int64), ("bias", c_void_p), ("add", c_void_p),
        ("add_stride", c_int64),
    ]  # fmt: skip


class NormArgs(ctypes.Structure):
    _fields_ = [
        ("x", c_void_p), ("x_stride", c_int64), ("group", c_int64), ("x_group_stride", c_int64),
        ("residual", c_void_p), ("residual_stride", c_int64), ("sum", c_void_p), ("sum_stride", c_int64),
        ("weight", c_void_p), ("bias", c_void_p), ("weight_offset", c_float), ("eps", c_float), ("center", c_int32),
        ("rows", c_int64), ("n", c_int64), ("out", c_void_p), ("out_stride", c_int64), ("quantized", c_int32),
        ("prepared", c_void_p),
    ]  # fmt: skip


IDENTITY, SILU, GELU, GELU_TANH, QUICK_GELU, RELU2 = range(6)


class ActivationArgs(ctypes.Structure):
    _fields_ = [
        ("function", c_int32), ("gated", c_int32), ("x", c_void_p), ("x_stride", c_int64), ("rows", c_int64),
        ("n", c_int64), ("out", c_void_p), ("out_stride", c_int64), ("quantized", c_int32), ("prepared", c_void_p),
        ("tiles", c_void_p),
    ]  # fmt: skip


class LoraArgs(ctypes.Structure):
    _fields_ = [
        ("format", c_int32), ("a", c_void_p), ("b", c_void_p), ("slots", c_int64), ("shards", c_int64),
        ("rank", c_int64), ("n_in", c_int64), ("ends", c_void_p), ("ranks", c_void_p), ("slot_of", c_void_p),
        ("ids", c_void_p), ("x", c_void_p), ("x_stride", c_int64), ("rows", c_int64), ("inner", c_void_p),
        ("out", c_void_p), ("out_stride", c_int64),
    ]  # fmt: skip


SOFTMAX, SIGMOID = range(2)
MOST_EXPERTS = 1024
"""That `bst_topk` can choose among."""


class TopkArgs(ctypes.Structure):
    _fields_ = [
        ("logits", c_void_p), ("logits_stride", c_int64), ("tokens", c_int64), ("experts", c_int32), ("k", c_int32),
        ("scoring", c_int32), ("renormalize", c_int32), ("bias", c_void_p), ("groups", c_int32),
        ("kept_groups", c_int32), ("weights", c_void_p), ("ids", c_void_p),
    ]  # fmt: skip


class RouteArgs(ctypes.Structure):
    _fields_ = [
        ("slots", c_void_p), ("tokens", c_int64), ("k", c_int64), ("experts", c_int64), ("offsets", c_void_p),
        ("places", c_void_p), ("rows_of", c_void_p), ("tiles", c_void_p),
    ]  # fmt: skip


class ExpertMatmulArgs(ctypes.Structure):
    _fields_ = [
        ("format", c_int32), ("weight", c_void_p), ("weight_bytes", c_int64), ("prepared", c_void_p),
        ("offsets", c_void_p), ("experts", c_int64), ("n_out", c_int64), ("n_in", c_int64), ("out", c_void_p),
        ("out_stride", c_int64),
    ]  # fmt: skip


class ExpertCombineArgs(ctypes.Structure):
    _fields_ = [
        ("x", c_void_p), ("x_stride", c_int64), ("weights", c_void_p), ("places", c_void_p), ("tokens", c_int64),
        ("k", c_int64), ("n", c_int64), ("add", c_void_p), ("add_stride", c_int64), ("out", c_void_p),
        ("out_stride", c_int64),
    ]  # fmt: skip


KV_F32, KV_F16, KV_BF16, KV_INT8 = range(4)


class RopeArgs(ctypes.Structure):
    _fields_ = [
        ("query", c_void_p), ("query_stride", c_int64), ("query_out", c_void_p), ("query_out_stride", c_int64),
        ("key", c_void_p), ("key_stride", c_int64), ("key_out", c_void_p), ("key_out_stride", c_int64),
        ("value", c_void_p), ("value_stride", c_int64), ("cos", c_void_p), ("sin", c_void_p),
        ("angle_stride", c_int64), ("positions", c_void_p), ("slots", c_void_p), ("rows", c_int64),
        ("heads", c_int32), ("kv_heads", c_int32), ("head_size", c_int32), ("rotary_dim", c_int32),
        ("neox", c_int32), ("kv_type", c_int32), ("block_size", c_int32), ("kv_cache", c_void_p),
    ]  # fmt: skip


class AnglesArgs(ctypes.Structure):
    _fields_ = [
        ("table", c_void_p), ("positions", c_void_p), ("rows", c_int64), ("rotary_dim", c_int32), ("neox", c_int32),
        ("cos", c_void_p), ("sin", c_void_p),
    ]  # fmt: skip


class AttentionArgs(ctypes.Structure):
    _fields_ = [
        ("query", c_void_p), ("query_stride", c_int64), ("kv_cache", c_void_p),
        ("query_start", c_void_p), ("seq_lens", c_void_p), ("block_tables", c_void_p), ("table_stride", c_int64),
        ("rows", c_int64), ("sequences", c_int64), ("kv_type", c_int32), ("block_size", c_int32),
        ("heads", c_int32), ("kv_heads", c_int32), ("head_size", c_int32), ("window", c_int32),
        ("scale", c_float), ("soft_cap", c_float), ("alibi", c_void_p), ("sinks", c_void_p),
        ("partial", c_void_p), ("most_splits", c_int64), ("out", c_void_p), ("out_stride", c_int64),
        ("quantized", c_int32), ("prepared", c_void_p),
    ]  # fmt: skip


class ArgmaxArgs(ctypes.Structure):
    _fields_ = [
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("rows", c_int64),
        ("n", c_int64),
        ("ids", c_void_p),
        ("peaks", c_void_p),
    ]


class ReadArgs(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("count", c_int64), ("sums", c_void_p)]


class Step(ctypes.Structure):
    _fields_ = [("kernel", c_void_p), ("args", c_void_p), ("wait", c_int32)]


KERNELS = {
    "bst_pack": PackArgs,
    "bst_decode": DecodeArgs,
    "bst_quantize_weights": QuantizeArgs,
    "bst_prepare": PrepareArgs,
    "bst_matmul": MatmulArgs,
    "bst_norm": NormArgs,
    "bst_activation": ActivationArgs,
    "bst_lora_shrink": LoraArgs,
    "bst_lora_expand": LoraArgs,
    "bst_topk": TopkArgs,
    "bst_route": RouteArgs,
    "bst_expert_matmul": ExpertMatmulArgs,
    "bst_expert_combine": ExpertCombineArgs,
    "bst_rope": RopeArgs,
    "bst_angles": AnglesArgs,
    "bst_attention": AttentionArgs,
    "bst_attention_join": AttentionArgs,
    "bst_argmax": ArgmaxArgs,
    "bst_read": ReadArgs,
}
"""Kernels by their symbol; each takes (arguments, part, parts)."""

_FUNCTIONS = {
    "bst_abi": (c_int, []),
    "bst_isa": (c_char_p, []),
    "bst_lanes": (c_int, []),
    "bst_cpu_level": (c_int, []),
    "bst_allocate": (c_void_p, [c_size_t]),
    "bst_free": (None, [c_void_p, c_size_t]),
    "bst_packed_size": (c_int64, [c_int, c_int64, c_int64]),
    "bst_row_size": (c_int64, [c_int, c_int64]),
    "bst_takes_quantized": (c_int, [c_int]),
    "bst_prepared_size": (c_int64, [c_int, c_int64, c_int64]),
    "bst_attention_split": (c_int, []),
    "bst_pool_create": (c_void_p, [c_int]),
    "bst_pool_destroy": (None, [c_void_p]),
    "bst_pool_threads": (c_int, [c_void_p]),
    "bst_run": (c_int, [c_void_p, POINTER(Step), c_int64]),
}


def declare(native: ctypes.CDLL) -> ctypes.CDLL:
    """Give every function of a loaded library its signature."""
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(native, name)
        function.restype, function.argtypes = result, arguments
    for name in KERNELS:
        function = getattr(native, name)
        function.restype, function.argtypes = None, [c_void_p, c_int, c_int]
    return native
