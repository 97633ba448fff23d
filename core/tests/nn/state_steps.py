"""Runs a layer with a state over sequences, in steps of any make-up, as the engine does: for tests of such layers."""

import torch

from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.context import ForwardContext, forward_context
from bestiary.nn.placement import finish, materialize, place
from bestiary.nn.weights import WeightsMapper, load_complete


def metadata(counts, starts, read, write):
    """A step in which each sequence, its one-token ones first, has so many tokens after those before."""
    ends = torch.tensor([0, *counts]).cumsum(0)
    lens = tuple(start + count for start, count in zip(starts, counts, strict=True))
    return AttentionMetadata(
        query_start=ends.int(),
        seq_lens=torch.tensor(lens, dtype=torch.int32),
        block_tables=torch.zeros(len(counts), 1, dtype=torch.int32),
        slot_mapping=torch.arange(int(ends[-1])),
        query_lens_host=tuple(counts),
        seq_lens_host=lens,
        max_query_len=max(counts),
        max_seq_len=max(lens),
        num_decodes=sum(count == 1 for count in counts),
        block_size=16,
        state_read=torch.tensor(read),
        state_write=torch.tensor(write),
    )


def run(model, layer, inputs, steps):
    """The outputs of `layer`, whose model was placed, for each of `inputs` ``[tokens, width]``.

    `steps`: per step, sequence → how many tokens it has in it. A row of states that no step wrote is NaN.
    """
    spec = layer.get_state_spec()
    rows = [
        torch.full((2 * len(inputs) + 1, *shape), torch.nan, dtype=dtype)
        for shape, dtype in zip(spec.shapes, spec.dtypes, strict=True)
    ]
    at = [0] * len(inputs)
    row_of = [-1] * len(inputs)
    outs = [[] for _ in inputs]
    for step in steps:
        order = sorted(step, key=lambda seq: step[seq] > 1)
        counts = [step[seq] for seq in order]
        write = [2 * seq + (row_of[seq] == 2 * seq) for seq in order]
        made = metadata(counts, [at[seq] for seq in order], [row_of[seq] for seq in order], write)
        flat = torch.cat([inputs[seq][at[seq] : at[seq] + step[seq]] for seq in order])
        context = ForwardContext(made, {}, states={layer.layer_name: tuple(rows)})
        with torch.inference_mode(), forward_context(context):
            out = model(flat)
        for seq, part, row in zip(order, out.split(counts), write, strict=True):
            outs[seq].append(part)
            at[seq] += step[seq]
            row_of[seq] = row
    return [torch.cat(each) for each in outs]


def loaded(layer, weights, mapper=None):
    """A model of that one layer, placed and loaded completely."""
    model = torch.nn.Sequential(layer)
    model.hf_to_vllm_mapper = (mapper or WeightsMapper()) | WeightsMapper(orig_to_new_prefix={"": "0."})
    place(model, None)
    materialize(model, torch.device("cpu"))
    load_complete(model, weights)
    finish(model)
    return model
