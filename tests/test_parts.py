"""Parts hold every text once, at most so many tokens, and no padding that all their texts share."""

import threading

import pytest
import torch

from embexp.encoding.parts import TOKENS, WORKERS, can_be_cut, parts, tokens_at_once, workers

CPU = torch.device("cpu")


def features(*lengths, left=False):
    """Texts of these lengths in tokens; the tokens of text n are all n + 1, padding is 0."""
    width = max(lengths)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, width - length :] = row + 1 if left else 0
        ids[row, :length] = ids[row, :length] if left else row + 1
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "prompt_length": 2}


def cut(given, tokens):
    return [(rows.tolist(), part["input_ids"].tolist()) for rows, part in parts(given, tokens=tokens)]


def test_parts_are_of_like_length_and_each_is_as_wide_as_its_longest_text():
    assert cut(features(1, 3, 2, 3), tokens=6) == [([1, 3], [[2, 2, 2], [4, 4, 4]]), ([2, 0], [[3, 3], [1, 0]])]


def test_padding_on_the_left_is_cut_on_the_left():
    assert cut(features(1, 3, 2, left=True), tokens=4) == [([1], [[2, 2, 2]]), ([2, 0], [[3, 3], [0, 1]])]


def test_a_text_longer_than_a_part_is_a_part_of_its_own():
    assert cut(features(5, 1), tokens=2) == [([0], [[1] * 5]), ([1], [[2]])]


def test_what_is_no_tensor_goes_with_every_part():
    assert [part["prompt_length"] for _, part in parts(features(2, 1), tokens=2)] == [2, 2]


def test_only_plain_padded_texts_can_be_cut():
    text = features(2, 1)
    assert can_be_cut(text)
    assert not can_be_cut({"input_ids": torch.zeros(5), "offsets": torch.tensor([0, 3])})
    assert not can_be_cut({**text, "pixel_values": torch.zeros(2, 3, 8, 8)})


@pytest.mark.parametrize("threads", [1, 2, 3 * WORKERS])
def test_workers_share_the_threads_and_leave_their_number_as_it_was(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        met = threading.Barrier(min(threads, WORKERS), timeout=20)

        def work(_):
            met.wait()  # so that each worker has one of the tasks
            return torch.get_num_threads()

        assert tokens_at_once(CPU) == TOKENS * max(1, threads // WORKERS)
        with workers(CPU) as pool:
            assert list(pool.map(work, range(min(threads, WORKERS)))) == [max(1, threads // WORKERS)] * met.parties
        assert torch.get_num_threads() == threads
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [threads]
    finally:
        torch.set_num_threads(before)
