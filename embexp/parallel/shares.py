"""Lets each process of a run embed its share of a batch, and train as one process does on the whole batch.

Every process reads the same batches. In a step each embeds some of a batch's rows, gets the embeddings of all others,
and computes the same loss of the whole batch, whatever loss that is. Its gradients flow into its own rows alone; added
up over the processes they are those of the whole batch. Called by `trainer`; knows nothing of what a loss computes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.gradcache import _create_minibatch

from embexp.errors import UserError
from embexp.parallel.processes import Processes

Features = dict[str, Any]


@contextmanager
def shared(models: Sequence[SentenceTransformer], processes: Processes | None) -> Iterator[None]:
    """While this is open, each model embeds this process's share of a batch and gives the embeddings of all of it.

    models: the one that is trained, and those that a loss looks at beside it. The output holds the sentence embeddings
    alone. Dropout differs from process to process and depends on the state of torch's generator, which moves on alike
    in all of them. Raises UserError where a loss embeds in another way than by calling the model.
    """
    if processes is None:
        yield
        return
    undo = [_share(model, processes) for model in models]
    try:
        yield
    finally:
        for undone in undo:
            undone()


def add_gradients(model: torch.nn.Module, of_loss: Sequence[torch.nn.Parameter], processes: Processes) -> None:
    """Make every parameter's gradient that of the whole batch, the same bits in all processes.

    of_loss: parameters that are the loss's own. They have seen the whole batch in each process, so process 0's count.
    """
    parameters = [value for value in model.parameters() if value.requires_grad] + list(of_loss)
    having = torch.tensor([value.grad is not None for value in parameters], dtype=torch.int32)
    processes.add_up([having])  # a part of a model that only another's rows went through
    gradients = []
    for parameter, number in zip(parameters, having.tolist(), strict=True):
        if number == 0:  # an optimiser leaves a parameter without a gradient as it is, but not one with zeros
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    if not processes.leads:
        for parameter in of_loss:
            if parameter.grad is not None:
                parameter.grad.zero_()
    processes.add_up(gradients)


def same_weights(model: torch.nn.Module, processes: Processes) -> None:
    """Give every process's copy of a model the weights of process 0's."""
    with torch.no_grad():
        processes.copy_from_first([*model.parameters(), *model.buffers()])


def generators() -> tuple[Any, Any, torch.Tensor]:
    """The states of the global generators that a loss or a library may draw from: Python's, numpy's, torch's."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_generators(states: tuple[Any, Any, torch.Tensor]) -> None:
    """Put them back, here or in another process."""
    of_python, of_numpy, of_torch = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)


def _share(model: SentenceTransformer, processes: Processes) -> Callable[[], None]:
    """Replace the model's forward; returns what undoes it."""
    usual = model.forward
    replaced = "forward" in vars(model)  # by accelerate, or to embed in parts
    cuts: dict[int, tuple[Features, Features]] = {}
    embedding = False

    def forward(features: Features, **arguments: Any) -> Features:
        nonlocal embedding
        order, numbers = rows_by_process(features, processes.count)
        own = torch.split(order, numbers)[processes.rank]
        if "forward" in vars(model[0]):  # AdaptiveLayerLoss's, which finds again what it left in the same features
            _, cut = cuts.setdefault(id(features), (features, _rows_of(features, own)))
        else:
            cut = _rows_of(features, own)
        embedding = True
        try:
            with _own_randomness(model.device, processes.rank):
                embedded = usual(cut, **arguments)["sentence_embedding"][: len(own)]
        finally:
            embedding = False
        gathered = processes.gathered(embedded.detach(), numbers)
        gathered[processes.rank] = embedded  # the one part that gradients flow through
        return {**features, "sentence_embedding": torch.cat(gathered)[order.argsort()]}

    def refuse_otherwise(*_: Any) -> None:
        if not embedding:
            raise UserError(
                "this loss embeds texts in its own way, which can't be shared among processes; set trainer.processes=1"
            )

    model.forward = forward
    hook = model[0].register_forward_pre_hook(refuse_otherwise)

    def undo() -> None:
        hook.remove()
        if replaced:
            model.forward = usual
        else:
            del model.forward

    return undo


def rows_by_process(features: Features, count: int) -> tuple[torch.Tensor, list[int]]:
    """(rows in an order, how many of them each process takes of it): about equally many tokens, and like lengths.

    Where rows are packed one behind the other they stay in their order. Every process has a row if there are as many.
    """
    lengths = _lengths(features)
    order = lengths.argsort(stable=True) if _is_padded(features) else torch.arange(len(lengths))
    taken = lengths[order].double().cumsum(0)
    middles = taken - lengths[order] / 2
    ends = [int((middles < taken[-1] * part / count).sum()) for part in range(1, count)] + [len(order)]
    for part in range(count - 1):  # one row at least, and one left for each of the others
        least = min((ends[part - 1] if part else 0) + 1, len(order))
        ends[part] = max(least, min(ends[part], len(order) - (count - 1 - part)))
    return order, [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _lengths(features: Features) -> torch.Tensor:
    """Tokens of each row, in memory."""
    if "cu_seq_lens_q" in features:  # packed for flash attention
        return features["cu_seq_lens_q"].diff().cpu()
    if "offsets" in features:  # a static model's
        ends = torch.cat([features["offsets"], torch.tensor([len(features["input_ids"])]).to(features["offsets"])])
        return ends.diff().cpu()
    if not _is_padded(features):
        raise UserError("this model's inputs can't be shared among processes; set trainer.processes=1")
    return features["attention_mask"].sum(dim=1).cpu()


def _is_padded(features: Features) -> bool:
    mask = features.get("attention_mask")
    return torch.is_tensor(mask) and mask.dim() == 2 and "cu_seq_lens_q" not in features


def _rows_of(features: Features, rows: torch.Tensor) -> Features:
    """The features of some rows, by themselves; of the first row where there are none, so that a model has something.

    What a model computes of rows that nobody asked for gets no gradient.
    """
    if len(rows) == 0:
        rows = torch.tensor([0])
    first, last = int(rows[0]), int(rows[-1]) + 1
    if "cu_seq_lens_q" in features:
        cut: Features = _create_minibatch(features, first, last)
        return cut
    if "offsets" in features:
        starts = [*features["offsets"].tolist(), len(features["input_ids"])]
        tokens = features["input_ids"][starts[first] : starts[last]]
        return {**features, "input_ids": tokens, "offsets": features["offsets"][first:last] - starts[first]}
    mask = features["attention_mask"]
    rows = rows.to(mask.device)
    width = int(mask[rows].any(dim=0).nonzero().max()) + 1 if mask[rows].any() else mask.shape[1]
    number = len(mask)

    def cut_to(value: Any) -> Any:
        if not torch.is_tensor(value) or value.dim() == 0 or value.shape[0] != number:
            return value
        return value[rows, :width] if value.shape[:2] == mask.shape else value[rows]

    return {name: cut_to(value) for name, value in features.items()}


@contextmanager
def _own_randomness(device: torch.device, rank: int) -> Iterator[None]:
    """Draws of this process's own, made from one draw that all processes make, and so alike when they are replayed."""
    start = int(torch.randint(2**62, ()))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(start + rank)
        yield
