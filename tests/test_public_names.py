"""The public names of every room: one that vanishes, or loses a promised argument, fails here."""

import importlib
import inspect

import pytest

#: module -> name -> the arguments that callers outside may use by name
SURFACE = {
    "convsmith.pooling": {
        "covariance": ("x", "center"),
        "matrix_sqrt": ("a", "method", "iterations", "normalization", "compensate"),
        "matrix_power": ("a", "exponent", "method"),
        "isqrt_covariance": ("x", "iterations", "side"),
        "triu_vector": ("a",),
        "GlobalAverage": (),
        "BilinearPooling": (),
        "CompactBilinear": (),
        "MPNCOV": ("exponent",),
        "ISQRTCOV": ("in_channels", "dim", "iterations"),
        "G2DeNet": (),
        "RAIDG": (),
        "L2EMG": (),
        "DeepO2P": (),
        "attach": ("model", "pooling", "dim", "num_classes"),
        "available": (),
    },
    "convsmith.compression": {
        "InterleavedGroupConv2d": ("primary", "members", "kernel_size"),
        "InterleavedStructuredConv2d": (),
        "InvertedInterleavedBlock": (),
        "MergeAndRunBlock": (),
        "composite_kernel": ("module",),
        "is_complementary": ("partitions",),
        "balanced_partition": ("channels", "layers"),
        "cost": ("model", "input_size"),
        "compress": ("model", "method", "example"),
        "restore_structure": ("model", "history"),
        "available": (),
    },
    "convsmith.interpretation": {
        "find_routes": (
            "model",
            "images",
            "settings",
            "sites",
            "layers",
            "batch_size",
            "labels",
            "index",
            "progress",
            "changes",
        ),
        "RouteSettings": ("gamma", "steps", "mode", "seed"),
        "Routes": (),
        "score_units": ("model", "images", "method"),
        "apply_routes": ("model", "images", "gates"),
        "ablate": ("model", "images", "labels", "routes", "fractions", "order"),
        "RouteDetector": ("classifier", "layers", "seed"),
        "attack": ("model", "images", "labels", "method", "epsilon", "targeted"),
    },
    "convsmith.adaptation": {
        "mmd": ("source", "target", "bandwidths", "estimator"),
        "conditional_mmd": (),
        "reverse_gradient": ("x", "scale"),
        "selective_adversarial_loss": (
            "source_features",
            "target_features",
            "source_probabilities",
            "target_probabilities",
            "class_weights",
            "discriminators",
        ),
        "ClassDiscriminators": ("features", "classes", "hidden", "dropout"),
        "class_weights": ("target_probabilities",),
        "adapt": ("model", "source", "target", "method", "validator", "steps", "seed"),
        "available": (),
    },
    "convsmith.adaptation.evaluation.validators": {"score": ("name",)},
    "convsmith.data": {
        "load": ("spec", "size", "channels", "seed", "augment", "broken", "root"),
        "pair": ("source", "target", "target_classes", "size", "channels", "seed"),
        "from_arrays": ("X", "y", "name", "classes"),
        "Loader": ("split", "batch_size", "seed", "shuffle", "augment", "rank", "world", "drop_last"),
        "DomainLoader": ("source", "target"),
        "Batch": ("images", "labels", "index"),
        "DomainBatch": ("source", "target"),
        "DataDescription": ("name", "classes", "channels", "size", "mean", "std", "counts", "source"),
        "available": (),
    },
    "convsmith.training": {
        "fit": ("task", "loader", "config", "validation", "out", "resume", "progress"),
        "FitResult": ("history", "steps", "best_step", "seconds", "interrupted"),
        "TrainConfig": (
            "steps",
            "epochs",
            "lr",
            "optimizer",
            "momentum",
            "nesterov",
            "weight_decay",
            "schedule",
            "warmup_steps",
            "clip",
            "accumulate",
            "precision",
            "ema",
            "patience",
            "restore",
            "seed",
            "device",
            "evaluate_every",
            "checkpoint_every",
            "keep_last",
            "log_every",
            "trackers",
        ),
        "Task": (),
        "Losses": ("total", "parts"),
        "ClassificationTask": ("model", "num_classes", "label_smoothing", "teacher", "distill", "temperature"),
        "classification_metrics": ("logits", "labels", "seed"),
        "Metrics": ("top1", "top5", "per_class", "confusion", "ece", "intervals"),
        "bootstrap_interval": ("values", "seed"),
        "expected_calibration_error": ("logits", "labels"),
        "distillation_loss": ("student", "teacher", "temperature"),
        "predict": ("model", "batches", "device"),
        "rank_and_world": (),
        "resolve_device": ("name",),
    },
    "convsmith.models.storage": {
        "ModelRecipe": ("name", "kwargs", "pooling", "compression", "description", "preprocessing"),
        "LoadedModel": ("model", "recipe", "preprocessing", "classes"),
        "build": ("recipe", "pretrained"),
        "save_model": ("folder", "model", "recipe"),
        "load": ("model", "weights"),
        "load_model": ("model", "weights", "num_classes", "in_chans", "pretrained", "device"),
    },
    "convsmith.report": {"Section": (), "Table": (), "Figure": (), "InlineImage": (), "build_report": ("runs", "out")},
    "convsmith.errors": {
        "ConvsmithError": ("rule", "argument", "given", "hint"),
        "InvalidArgument": ("rule", "argument", "given", "hint"),
        "MissingExtra": ("rule", "argument", "given", "hint"),
        "RunFailed": ("rule", "argument", "given", "hint"),
    },
    "convsmith.registry": {"Registry": ("kind",)},
}

MEMBERS = {
    "convsmith.interpretation.Routes": (
        "steps",
        "passes",
        "converged",
        "vector",
        "sparsity",
        "critical",
        "save",
        "load",
        "to_frame",
    ),
    "convsmith.interpretation.RouteDetector": ("fit", "score", "predict", "save", "load"),
    "convsmith.compression.Cost": ("params", "macs", "activations", "by_layer"),
    "convsmith.adaptation.AdaptationResult": ("model", "class_weights", "history", "selected_step", "warnings"),
    "convsmith.data.ImageSplit": ("labels", "index", "fetch", "pixels", "subset", "of_classes"),
    "convsmith.training.Metrics": ("to_json",),
    "convsmith.training.Task": ("forward", "evaluate", "parameter_groups", "before_step"),
}

#: names that ``available()`` of a room must offer
OFFERED = {
    "convsmith.compression": {
        "interleave",
        "low-rank",
        "prune-filters",
        "prune-channels",
        "sparse",
        "structured-sparse",
        "int8",
        "ternary",
        "binary",
    },
    "convsmith.adaptation": {"source-only", "dan", "dann", "adda", "san", "pada"},
    "convsmith.data": {"digits", "mnist-5k", "fashion-mnist"},
    "convsmith.pooling": {"isqrt-cov"},
}

#: names timm must know once convsmith is imported
NETWORKS = (
    "cs_resnet20",
    "cs_resnet32",
    "cs_resnet44",
    "cs_resnet56",
    "igcv3_d_070",
    "igcv3_d_100",
    "igcv3_d_140",
    "resnet18_isqrt",
    "resnet34_isqrt",
    "resnet50_isqrt",
    "resnet101_isqrt",
    "vgg16_bn_isqrt",
)
FAMILIES = ("igcv1_*", "igcv2_*", "igcv3_cifar*", "dmrnet*", "xception_igc*")


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, names in SURFACE.items() for n in names])
def test_name_and_its_arguments(module, name):
    value = getattr(importlib.import_module(module), name)
    if SURFACE[module][name]:
        parameters = inspect.signature(value).parameters
        missing = [p for p in SURFACE[module][name] if p not in parameters]
        assert not missing, f"{module}.{name} lost {missing}; it has {list(parameters)}"


@pytest.mark.parametrize("path", MEMBERS)
def test_members(path):
    module, name = path.rsplit(".", 1)
    kind = getattr(importlib.import_module(module), name)
    known = {*dir(kind), *getattr(kind, "__dataclass_fields__", ())}
    assert set(MEMBERS[path]) <= known, f"{path} lost {sorted(set(MEMBERS[path]) - known)}"


@pytest.mark.parametrize("room", OFFERED)
def test_available(room):
    names = importlib.import_module(room).available()
    assert OFFERED[room] <= set(names)
    assert list(names) == sorted(names)


@pytest.mark.parametrize("module", [m for m in SURFACE if m.count(".") == 1])
def test_everything_a_room_exports_exists(module):
    room = importlib.import_module(module)
    for name in getattr(room, "__all__", ()):
        assert hasattr(room, name), f"{module}.__all__ names {name}, which does not exist"


def test_networks_are_known_to_timm():
    import timm

    import convsmith  # noqa: F401

    known = set(timm.list_models())
    assert set(NETWORKS) <= known, sorted(set(NETWORKS) - known)
    for family in FAMILIES:
        assert timm.list_models(family), family
