import pytest
from hydra import compose, initialize_config_dir

from embexp.config import experiment as configs
from embexp.config.arguments import checked_arguments
from embexp.config.checks import CONFIG_FOLDER, plain
from embexp.config.experiment import GROUPS, SHAPES, mistakes_in
from embexp.errors import UserError
from tests.command import separate

NEEDS = {"local": ["model.path=x"], "pairs": ["dataset.path=x"], "beir": ["dataset.path=x"],
         "mined": ["dataset.path=x"],
         "gpl": ["dataset.path=x"],
         "own_code": ["dataset.packages=[x]"], "similarity": ["metric=similarity.spearman_cosine"],
         "triplet": ["metric=triplet.cosine_accuracy"],
         "binary_classification": ["metric=binary_classification.cosine_ap"]}  # fmt: skip
FILES = [
    (path.parent.name, path.stem)
    for group in [*GROUPS, "experiment"]
    for path in sorted((CONFIG_FOLDER / group).glob("*.yaml"))
]


def check(*overrides, sweep=False):
    return checked_arguments(overrides, config_dir=None, sweep=sweep)


def problems(*overrides, sweep=False):
    with pytest.raises(UserError) as error:
        check(*overrides, sweep=sweep)
    return error.value.problems


def composed(*overrides):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return plain(compose("config", list(overrides)))


@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_file_composes_and_has_no_mistake(group, name):
    needs = NEEDS.get(name, []) if (group, name) != ("loss", "triplet") else []
    assert check(f"{group}={name}", *needs) == [f"{group}={name}", *needs]


def test_all_mistakes_are_listed_at_once_with_the_nearest_name():
    found = problems("loss=mnlr", "trainer.learning_rat=1e-5", "trainer.num_train_epochs=many", "metric=recal@10")
    assert len(found) == 4
    for nearest in ("did you mean mnrl?", "did you mean trainer.learning_rate?", "did you mean recall@10?"):
        assert any(nearest in problem for problem in found)
    assert "trainer.num_train_epochs='many' must be a number" in found


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.learning_rate=abc", "must be a number"),
        ("trainer.lr_scheduler_type=consine", "must be one of linear, cosine"),
        ("trainer.per_device_train_batch_size=1", "must be at least 2"),
        ("trainer.learning_rate=-1", "must be above 0"),
        ("loss.scale=[1]", "must be a number"),
        ("loss.sclae=10", "did you mean loss.scale?"),
        ("model.dtype=fp8", "must be one of auto, float32, bfloat16"),
        ("dataset.split.test=big", "must be a number"),
        ("evaluator.retrieval.k_values=[0]", "must be whole numbers from 1 up"),
        ("evaluator.retrieval.k_values=[]", "must be whole numbers from 1 up"),
        ("seed=x", "must be a whole number"),
        ("seed=true", "must be a whole number"),
        ("limit=1", "must be at least 3"),
        ("cache_size_gb=0", "must be above 0"),
        ("trainer.evaluation_share=5", "must be a share of the training's time: 0.05 is 5 %"),
        ("cache_size_gb=all", "must be a number of gigabytes, or null"),
        ("dataset=pairs", "dataset.path must be set"),
        ("model=local", "model.path must be set"),
        ("loss.shape=scored_pair", "read by loss=angle, cosent, cosine"),
        ("loss.shape=scored_pair", "this loss reads pair or triplet or n_tuple"),
        ("loss=[mnrl,triplet]", "takes one of"),
        ("loss=mnrl,triplet", "add -m"),
        ("nonsense", "not of the form key=value"),
        ("loss[scale]=1", "not of the form key=value"),
        ("++hydra[run][dir]=elsewhere", "not of the form key=value"),
        ("foo.bar=1", "there is no such key"),
        ("~logger", "logger is not in the config"),
        ("~seed", "seed is not in the config"),
        ("~trainer.eval_steps", "trainer.eval_steps must be set"),
        ("~loss.shape", "loss has no shape"),
        ("trainer.early_stopping=abc", "must be a whole number or null"),
        ("loss.accepts=pair", "must be a list of shapes"),
        ("seed=${nothing}", "nothing"),
        ("~loss.nothing", "there is no such key"),
        ("negatives=none loss=triplet", "loss.shape=triplet needs negatives and there are none; set negatives=hard"),
        ("negatives=none loss.shape=n_tuple", "set negatives=hard, or loss.shape=pair"),
        ("negatives=none loss=margin_mse", "loss.shape=list needs negatives"),
        ("negatives=none negatives.per_query=3", "negatives=none has no keys"),
        ("negatives.encoder=x", "negatives.encoder is set by embexp"),
        ("negatives=hard negatives.rank_range=5", "must be a list"),
        ("negatives=hard negatives.relative_margin=much", "must be a number or null"),
        ("loss=margin_mse loss.teacher=3", "must be a cross-encoder's folder or Hub id, or null for the base model"),
        ("loss=margin_mse ~loss.teacher", "has no key teacher"),
        ("loss=matryoshka loss@loss.inner=tripel", "did you mean triplet?"),
        ("loss@loss.inner=triplet", "Could not override 'loss@loss.inner'"),
        ("loss=matryoshka loss.inner.sclae=1", "did you mean loss.inner.scale?"),
        ("loss=matryoshka loss.inner.scale=x", "loss.inner.scale='x' must be a number"),
        ("loss=matryoshka loss.inner.model=x", "loss.inner.model is set by embexp"),
        ("loss=matryoshka loss.inner._target_=os.system", "_target_ 'os.system'"),
        ("loss=matryoshka loss.shape=scored_pair", "this loss reads pair or triplet or n_tuple"),
        ("loss=matryoshka loss@loss.inner=triplet negatives=none", "loss.shape=triplet needs negatives"),
        ("loss=matryoshka loss.dims=[x]", "must be a list, each a whole number"),
        ("loss=matryoshka loss.dims=[0]", "must be whole numbers from 1 up"),
        ("loss=matryoshka metric=dim65.recall@10", "did you mean dim64.recall@10?"),
        ("metric=dim64.recall@10", "is not made by the chosen evaluators"),
        ("loss=gist model=static", "this loss needs a transformer and the model is static; choose another model"),
        ("loss=cached_mnrl model=static", "this loss needs a transformer"),
        ("loss=matryoshka loss@loss.inner=gist model=static", "this loss needs a transformer"),
        ("loss=gist loss.needs=gpu", "loss.needs='gpu' must be transformer, or null for any model"),
        ("loss=gist loss.needs=[x]", "loss.needs=['x'] must be transformer, or null for any model"),
        ("model=static model.kind=3", "model.kind=3 must be a word for what it is, such as static"),
        ("reranker=trained reranker.depth=0", "reranker.depth=0 must be at least 1"),
        ("reranker=trained ~reranker.depth", "reranker.depth must be set: reranker.depth=..."),
        ("reranker=pretrained ~reranker.path", "reranker.path must be set"),
        ("reranker=trained ~reranker.path", "reranker.path must be set"),
        ("reranker=trained ~reranker.max_length", "reranker.max_length must be set"),
        ("reranker=trained ~reranker.dropout", "reranker.dropout must be set"),
        ("reranker=pretrained reranker.weight=2", "reranker.weight=2 must be from 0 to 1, or null"),
        ("reranker=trained reranker.weight=-1", "reranker.weight=-1 must be"),
        ("reranker=trained reranker.negatives.per_query=0", "reranker.negatives.per_query=0 must be at least 1"),
        ("reranker=trained reranker.negatives.rank_rang=[1,2]", "did you mean reranker.negatives.rank_range?"),
        ("reranker=pretrained reranker.num_train_epochs=2", "there is no such key"),
        ("reranker=trained model=static", "starts from the run's model, and this one is static; set reranker.path"),
        ("reranker=pretrained evaluator=similarity metric=similarity.spearman_cosine", "nothing of a ranking"),
        ("loss._target_=os.system", "_target_ 'os.system'"),
        ("loss._target_=sentence_transformers.sentence_transformer.losses.margin_mse.torch.load", "package 'torch'"),
        ("negatives._target_=embexp.rows.negatives.nothing", "was not found"),
    ],
)
def test_a_mistake_is_found_and_explained(override, words):
    found = problems(*override.split(" "))
    assert any(words in problem for problem in found), found


@pytest.mark.parametrize("key", sorted(configs.RUNNER_OWNS["trainer"]))
def test_a_key_that_the_runner_owns_is_refused_with_the_reason(key):
    (problem,) = problems(f"trainer.{key}=1")
    assert problem == f"trainer.{key} is set by embexp: {configs.RUNNER_OWNS['trainer'][key]}"


def test_an_argument_that_no_file_names_is_accepted_when_the_target_takes_it():
    assert check("trainer.adam_beta1=0.8") == ["++trainer.adam_beta1=0.8"]
    assert check("loss.partition_mode=joint") == ["++loss.partition_mode=joint"]
    for choices in ("trainer=smoke,default", "trainer=default,smoke"):  # one has the key, the other not
        assert check(choices, "trainer.max_steps=2", sweep=True) == [choices, "++trainer.max_steps=2"]
    assert "must be a number" in problems("trainer.adam_beta1=x")[0]


def test_a_sweep_checks_every_value():
    assert check("loss=mnrl,triplet", "seed=1,2", sweep=True) == ["loss=mnrl,triplet", "seed=1,2"]
    assert "loss=tripel" in problems("loss=mnrl,tripel", sweep=True)[0]
    for values in ("1e-5,x", "x,1e-5"):
        assert "trainer.learning_rate='x' must be a number" in problems(f"trainer.learning_rate={values}", sweep=True)


def test_rules_that_join_keys():
    assert "trainer=none has no keys" in problems("trainer=none", "trainer.learning_rate=1")[0]
    assert "needs evaluations" in problems("trainer.early_stopping=1", "trainer.eval_strategy=no")[0]


def test_a_loss_inside_another_is_chosen_and_set_and_decides_the_shape():
    chosen = ["loss=matryoshka", "loss@loss.inner=triplet", "loss.inner.triplet_margin=0.1", "metric=dim64.ndcg@5"]
    assert set(check(*chosen)) == set(chosen)
    loss = composed(*chosen)["loss"]
    assert (loss["shape"], loss["accepts"], loss["teacher"]) == ("triplet", ["triplet"], None)
    assert loss["inner"]["triplet_margin"] == 0.1
    taught = composed("loss=matryoshka", "loss@loss.inner=margin_mse", "loss.inner.teacher=judge")
    assert taught["loss"]["teacher"] == "judge"
    assert taught["evaluator"]["retrieval"]["dimensions"] == [256, 128, 64]
    assert composed()["evaluator"]["retrieval"]["dimensions"] == []


def test_a_loss_may_be_two_levels_down():
    chosen = ["loss=matryoshka", "loss@loss.inner=global_orthogonal", "loss@loss.inner.inner=margin_mse"]
    assert check(*chosen) == chosen
    assert composed(*chosen, "loss.inner.inner.teacher=judge")["loss"]["teacher"] == "judge"
    assert "did you mean loss.inner.inner.teacher?" in problems(*chosen, "loss.inner.inner.taecher=x")[0]


def test_several_values_may_come_before_a_key_that_must_be_set():
    words = ["dataset=pairs", "seed=1,2", "dataset.path=pairs.jsonl"]
    assert check(*words, sweep=True) == words


def test_the_losses_inside_another_can_be_swept():
    swept = ["loss=matryoshka", "loss@loss.inner=mnrl,cosent"]
    assert check(*swept, sweep=True) == swept
    assert (
        "loss@loss.inner=tripelt: there is no such loss; did you mean triplet?"
        in problems("loss=matryoshka", "loss@loss.inner=mnrl,tripelt", sweep=True)[0]
    )


def test_interpolations_of_hydra_are_understood():
    assert check("logger.name=${hydra:job.name}") == ["logger.name=${hydra:job.name}"]


def test_a_package_is_allowed_only_by_the_explicit_setting():
    foreign = "negatives._target_=random.sample"
    assert "set allowed_packages=[random]" in problems(foreign)[0]
    assert check(foreign, "allowed_packages=[random]") == [foreign, "allowed_packages=[random]"]


def test_shapes_and_measures_of_the_check_are_those_of_the_code():
    from embexp.evaluation import metrics
    from embexp.rows import shapes

    assert list(shapes.SHAPES) == SHAPES
    assert list(shapes.WITH_NEGATIVES) == configs.NEEDS_NEGATIVES
    assert list(metrics.MEASURES) == configs.MEASURES


def test_the_keys_of_a_loss_file_that_are_no_parameters_are_those_of_the_code():
    from embexp.training import losses

    assert list(losses.OWN_KEYS) == list(configs.OWN_KEYS["loss"])


def test_the_negatives_that_nobody_asked_for_are_the_defaults():
    from embexp.rows.negatives import DEFAULT

    assert composed()["negatives"] == DEFAULT


def test_what_a_loss_needs_matters_only_where_it_is_trained():
    for fits in (["loss=gist"], ["loss=gist", "model=static", "trainer=none"], ["model=static"]):
        assert check(*fits) == fits


def test_the_default_config_has_no_mistake_and_a_broken_one_has():
    config = composed()
    assert mistakes_in(config) == []
    config["evaluator"]["retrieval"]["_target_"] = None
    assert any("evaluator.retrieval must be a mapping" in problem for problem in mistakes_in(config))


def test_config_errors_come_before_anything_heavy_is_imported(tmp_path):
    ended = separate("loss=mnlr", folder=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("embexp: loss=mnlr")
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_users_that_has_a_packaged_name_is_refused_and_not_passed_over(tmp_path):
    for name in ("mnrl", "mine", "triplet"):
        (tmp_path / "loss").mkdir(exist_ok=True)
        (tmp_path / "loss" / f"{name}.yaml").write_text((CONFIG_FOLDER / "loss" / "mnrl.yaml").read_text() + "# mine")
    with pytest.raises(UserError) as raised:
        checked_arguments(["loss=mine", "seed=x"], config_dir=str(tmp_path), sweep=False)
    assert [problem.split(":")[0] for problem in raised.value.problems[:2]] == [
        f"{tmp_path}/loss/{name}.yaml would not be read" for name in ("mnrl", "triplet")
    ]
    assert "Rename it" in raised.value.problems[0]
    assert "seed='x'" in raised.value.problems[-1]
    for name in ("mnrl", "triplet"):  # an unchanged copy reads the same
        (tmp_path / "loss" / f"{name}.yaml").write_bytes((CONFIG_FOLDER / "loss" / f"{name}.yaml").read_bytes())
    assert checked_arguments(["loss=mine"], config_dir=str(tmp_path), sweep=False) == ["loss=mine"]


@pytest.mark.parametrize("sweep", sorted(path.stem for path in (CONFIG_FOLDER / "sweep").glob("*.yaml")))
def test_every_sweep_file_searches_what_there_is(sweep):
    own = ["trainer.learning_rate=interval(1e-6,1e-4)"] if sweep == "custom" else []
    assert checked_arguments([f"sweep={sweep}", *own], config_dir=None, sweep=True)[0] == f"sweep={sweep}"
