"""What a training leaves behind of what it sets up, and when it asks for checkpoints."""

from types import SimpleNamespace

import numpy as np
import pytest

from embexp.encoding.encoder import Encoder
from embexp.models.embedding_model import Transformer
from embexp.rows.negatives import draw_random
from embexp.rows.shapes import to_rows
from embexp.training.callbacks import Saves
from embexp.training.fine_tuning import Task, train
from tests.conftest import toy_set
from tests.tiny import tiny_transformer


@pytest.mark.parametrize(("dtype", "dropout"), [("float32", 0.3), ("bfloat16", 0.0)])
def test_a_look_embeds_with_the_attention_of_the_finished_model_to_the_last_bit(tmp_path, dtype, dropout):
    tiny = tiny_transformer(tmp_path / "tiny")
    model = Transformer(path=str(tiny), dtype=dtype, dropout=dropout).load([])
    assert model.eager_training
    data, embedded, used = toy_set(), [], []

    def attention():
        return model.model.transformers_model.config._attn_implementation

    def look():
        embedded.append(np.array(Encoder(model).passages(list(data.corpus.values()))))
        return {"score": len(embedded)}  # so that the last is the best

    hook = model.model[0].register_forward_pre_hook(lambda *_: used.append((attention(), model.model.training)))
    task = Task(
        to_rows(data, "pair", negatives=draw_random, seed=0),
        data,
        loss={
            "_target_": "sentence_transformers.sentence_transformer.losses.MultipleNegativesRankingLoss",
            "_partial_": True,
        },
        allowed_packages=[],
        arguments={"per_device_train_batch_size": 8, "max_steps": 4, "num_train_epochs": 1, "learning_rate": 0.01}
        | {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1},
        metric="score",
        seed=0,
        folder=tmp_path / "run",
        made_from="test",
    )
    done = train(model, task, dev_metrics=look, tracker=None)
    hook.remove()
    assert (done.best_step, len(embedded)) == (4, 2)
    assert set(used) == {("eager", True), ("sdpa", False)}
    assert np.array_equal(embedded[-1], Encoder(model).passages(list(data.corpus.values())))


@pytest.mark.parametrize(("every", "steps"), [(4, [4, 8]), (0.25, [3, 6, 9])])
def test_checkpoints_are_asked_for_after_so_many_steps_or_a_share_of_all(every, steps):
    callback, asked = Saves(every), []
    for step in range(1, 11):
        control = SimpleNamespace(should_save=False)
        callback.on_step_end(None, SimpleNamespace(global_step=step, max_steps=10), control)
        if control.should_save:
            asked.append(step)
    assert asked == steps
