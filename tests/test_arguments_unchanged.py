"""No public function changes the network it is given: state, structure, hooks, flags, gradients and outputs stay."""

import copy
import importlib
import inspect
from functools import partial

import pytest
import timm
import torch
from torch import nn

import convsmith  # noqa: F401  (registers our models)
from convsmith import adaptation, compression, inspection, interpretation, models, pooling, training
from convsmith.data.batch import Batch
from tests.adaptation.worlds import world
from tests.network_picture import IMAGES, LABELS, assert_unchanged, mixed, network, picture

ROOMS = ("inspection", "compression", "pooling", "interpretation", "adaptation", "models", "training", "report")
BATCHES = [Batch(IMAGES, LABELS, torch.arange(4)), Batch(IMAGES + 0.1, LABELS, torch.arange(4, 8))]


def routes(model):
    return interpretation.find_routes(copy.deepcopy(model), IMAGES, mode="paper", steps=2)


def with_routes(function, **settings):
    return lambda model, _: function(model, IMAGES, routes=routes(model), **settings)


def compressed(method, **settings):
    return lambda model, _: compression.compress(model, method, example=IMAGES, **settings)


def adapted(method, **settings):
    def run(model, _):
        quick = {"steps": 2, "batch_size": 8, "device": "cpu", "reference": None}
        return adaptation.adapt(model, *world(n=20, m=12), method=method, **quick, **settings)

    return run


def evaluated(model, _):
    with inspection.evaluating(model), inspection.eager():
        model(IMAGES)


def rebuilt(model, _):
    history = compression.compression_history(compression.compress(model, "low-rank", example=IMAGES, keep_macs=0.7))
    return compression.restore_structure(model, history)


def tables(model, _):
    train, test = (
        interpretation.Images(
            torch.cat([IMAGES + k / 9 for k in range(n)]).clamp(0, 1),
            LABELS.repeat(n),
            torch.arange(4 * n) + 100 * n,
            (0.0,),
            (1.0,),
        )
        for n in (3, 2)
    )
    return interpretation.detection_table(
        model,
        train,
        test,
        epsilon=0.1,
        per_class=(1,),
        features=("activations",),
        classifiers=("random-forest",),
        trees=3,
    )


def art(model, _):
    detector = interpretation.RouteDetector(trees=3)
    adapter = interpretation.ArtDetector(model, detector, {"mode": "paper", "steps": 2})
    return adapter.fit(IMAGES.numpy(), [0, 1, 0, 1]).detect(IMAGES.numpy())


def finetuned(model, _):
    config = training.TrainConfig(steps=2, device="cpu")
    made = compression.compress(model, "ternary", example=IMAGES)
    before = picture(made)
    compression.finetune(made, model, BATCHES, num_classes=5, config=config)
    assert_unchanged(made, before)


def task(model, _):
    teacher = training.ClassificationTask(nn.Linear(2, 2), 5, teacher=model, distill=0.5)
    with torch.no_grad():
        teacher.train()
        teacher.teacher(IMAGES)


#: room.name -> calls with (model, folder); functions that need evaluation mode are called in it only
CALLS = {
    "inspection.trace_layers": [lambda model, _: inspection.trace_layers(model, IMAGES)],
    "inspection.count_operations": [
        lambda model, _: inspection.count_operations(model, IMAGES.shape),
        lambda model, _: inspection.count_operations(model, IMAGES.shape, fake=False),
    ],
    "inspection.extract_features": [lambda model, _: inspection.extract_features(model, BATCHES)],
    "inspection.features_and_logits": [lambda model, _: inspection.features_and_logits(model, IMAGES)],
    "inspection.classifier_of": [lambda model, _: inspection.classifier_of(model)],
    "inspection.check_evaluation": [lambda model, _: inspection.check_evaluation(model)],
    "inspection.evaluating": [evaluated],
    "inspection.unwrap": [lambda model, _: inspection.unwrap(nn.DataParallel(model))],
    "compression.compress": [
        compressed("low-rank", keep_macs=0.7),
        compressed("prune-filters", keep_macs=0.7),
        compressed("interleave", keep_macs=0.8),
        compressed("sparse", sparsity=0.5),
        compressed("structured-sparse", pattern="2:4"),
        compressed("int8"),
        compressed("binary"),
        compressed("low-rank,ternary", keep_params=0.7),
    ],
    "compression.plan_compression": [
        lambda model, _: compression.plan_compression(model, "low-rank", example=IMAGES, keep_macs=0.7)
    ],
    "compression.restore_structure": [rebuilt],
    "compression.compression_history": [lambda model, _: compression.compression_history(model)],
    "compression.cost": [lambda model, _: compression.cost(model, (1, 8, 8))],
    "compression.size": [lambda model, _: compression.size(model, (1, 8, 8))],
    "compression.latencies": [
        lambda model, _: compression.latencies({"a": model}, IMAGES, batches=(1,), compiled=False, seconds=0.01)
    ],
    "compression.layer_errors": [lambda model, _: compression.layer_errors(model, model, IMAGES)],
    "compression.fold_for_inference": [lambda model, _: compression.fold_for_inference(model)(IMAGES)],
    "compression.finish": [lambda model, _: compression.finish(model)],
    "compression.finetune": [finetuned],
    "compression.packed_state": [lambda model, _: compression.packed_state(model)],
    "compression.reestimate_batchnorm": [lambda model, _: compression.reestimate_batchnorm(model, BATCHES)],
    "interpretation.find_routes": [
        lambda model, _: interpretation.find_routes(model, IMAGES, mode="paper", steps=2),
        lambda model, _: interpretation.find_routes(model, IMAGES, mode="converged", steps=3),
    ],
    "interpretation.find_routes_from_loader": [
        lambda model, folder: interpretation.find_routes_from_loader(model, BATCHES, folder)
    ],
    "interpretation.score_units": [
        partial(lambda name, model, _: interpretation.score_units(model, IMAGES, name), name)
        for name in interpretation.SCORES.names()
    ],
    "interpretation.apply_routes": [
        lambda model, _: interpretation.apply_routes(model, IMAGES, routes(model)),
    ],
    "interpretation.ablate": [with_routes(interpretation.ablate, labels=LABELS, fractions=[0.0, 0.5])],
    "interpretation.removal_curve": [with_routes(interpretation.removal_curve, labels=LABELS, fractions=[0.0, 0.5])],
    "interpretation.heat_map": [with_routes(interpretation.heat_map)],
    "interpretation.runner_up_contrast": [with_routes(interpretation.runner_up_contrast)],
    "interpretation.baseline_features": [
        lambda model, _: interpretation.baseline_features(model, IMAGES, "activations")
    ],
    "interpretation.attack": [
        partial(lambda name, model, _: interpretation.attack(model, IMAGES, LABELS, name), name)
        for name in ("fgsm", "ifgsm", "pgd")
    ],
    "interpretation.initialisation_overlap": [
        lambda model, _: interpretation.initialisation_overlap(model, IMAGES, mode="paper", steps=2)
    ],
    "interpretation.regularisation_path": [
        lambda model, _: interpretation.regularisation_path(model, IMAGES, [0.1, 0.05])
    ],
    "interpretation.routes_at_sparsity": [
        lambda model, _: interpretation.routes_at_sparsity(model, IMAGES, 0.5, rounds=1)
    ],
    "interpretation.detection_table": [tables],
    "interpretation.ArtDetector": [art],
    "adaptation.adapt": [adapted("source-only"), adapted("dann", hidden=(4,)), adapted("san", hidden=(4,), every=1)],
    "models.save_model": [
        lambda model, folder: models.save_model(folder, model, models.ModelRecipe("cs_resnet20", {}))
    ],
    "training.predict": [lambda model, _: training.predict(model, BATCHES, device="cpu")],
    "training.predict_split": [lambda model, _: training.predict_split(model, world(n=20, m=12)[0], 8, "cpu")],
    "training.ClassificationTask": [task],
    "training.norms": [lambda model, _: training.norms(model)],
}
#: called with the model in evaluation mode only: they refuse another
EVALUATION = ("interpretation.", "inspection.check_evaluation")
#: public names with a model that this test does not call, and why
EXEMPT = {
    "inspection.Call": "a record",
    "inspection.channels_first": "reads an attribute",
    "inspection.feature_fn": "tested below, on a network of timm",
    "inspection.infer_channels": "tested below, on a network of timm",
    "compression.ChainBlock": "a block that holds its chain",
    "compression.ChainResidual": "a block that holds its chains",
    "compression.composite_kernel": "tested below, on a chain",
    "compression.dense_convolution": "tested below, on a chain",
    "compression.kernel_structure": "tested below, on a chain",
    "compression.tune": "tested below, on a chain",
    "compression.load_packed_state": "fills its argument, as torch's load_state_dict does",
    "pooling.PooledClassifier": "holds its backbone; attach gives it a copy",
    "pooling.attach": "tested below, on a network of timm",
    "adaptation.AdaptationResult": "a record",
    "adaptation.DomainTask": "what the training trains",
    "models.LoadedModel": "a record",
    "models.load_model": "its model is a name",
    "training.freeze": "prepares what is about to be trained, in place, and returns no network",
    "training.linear_probe": "tested below, on a network of timm",
}


def public_names_with_a_model():
    for room in ROOMS:
        module = importlib.import_module(f"convsmith.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            try:
                parameters = inspect.signature(value).parameters.values()
            except (TypeError, ValueError):
                continue
            if any(p.name == "model" or "nn.Module" in str(p.annotation) for p in parameters):
                yield f"{room}.{name}"


def test_every_public_function_with_a_model_is_called_here():
    names = set(public_names_with_a_model())
    assert names - {*CALLS, *EXEMPT} == set(), "add a call to CALLS"
    assert {*CALLS, *EXEMPT} - names == set()


MODES = [
    pytest.param(name, number, training_mode, id=f"{name}-{number}-{'training' if training_mode else 'evaluation'}")
    for name, calls in CALLS.items()
    for number in range(len(calls))
    for training_mode in ((False,) if name.startswith(EVALUATION) else (False, True))
]


@pytest.mark.parametrize(("name", "number", "training_mode"), MODES)
def test_the_network_is_left_as_it_was(name, number, training_mode, tmp_path):
    model = mixed(network()) if training_mode else network()
    if name == "inspection.features_and_logits":
        model.eval()  # in the model's own mode, which moves the statistics of its normalisations
    before = picture(model)
    CALLS[name][number](model, tmp_path)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "call",
    [
        pooling.attach,
        lambda model: inspection.infer_channels(model, inspection.feature_fn(model), None),
        lambda model: training.linear_probe(model, [Batch(torch.rand(4, 1, 32, 32), LABELS % 3, torch.arange(4))]),
    ],
)
def test_a_network_of_timm_is_left_as_it_was(call):
    model = timm.create_model("cs_resnet20", num_classes=3, in_chans=1)
    model.layer1.eval() if hasattr(model, "layer1") else model.bn1.eval()
    before = picture(model)
    call(model)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    "call",
    [
        compression.composite_kernel,
        compression.dense_convolution,
        compression.kernel_structure,
        lambda chain: compression.tune(chain, torch.rand(2, 8, 5, 5), rounds=1),
    ],
)
def test_a_chain_is_left_as_it_was(call):
    chain = compression.InterleavedGroupConv2d(4, 2)
    before = {key: value.clone() for key, value in chain.state_dict().items()}, [m.training for m in chain.modules()]
    call(chain)
    after = chain.state_dict()
    assert [m.training for m in chain.modules()] == before[1]
    assert all(torch.equal(after[key], value) for key, value in before[0].items())


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.train(),
        lambda model: model[6].register_forward_pre_hook(lambda *_: None),
        lambda model: model[0].weight.requires_grad_(True),
        lambda model: model.__setitem__(2, nn.ReLU()),
        lambda model: model[10].zero_grad(),
        lambda model: model[3].bias.data.add_(1e-6),
        lambda model: model[2].__dict__.update(forward=torch.relu),
        lambda model: model.note.append("yours"),
    ],
)
def test_a_change_is_seen(change):
    model = network()
    before = copy.deepcopy({"note": model.note}), picture(model)
    before[1].update(before[0])
    change(model)
    with pytest.raises(AssertionError):
        assert_unchanged(model, before[1])
