"""The demonstration's first part: train the control network on digits and measure it on held-out images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from convsmith.cli.shell import evaluation
from convsmith.cli.shell.progress import progress

if TYPE_CHECKING:
    from torch import nn

    from convsmith.cli.verbs.demo import Context
    from convsmith.data import ImageData
    from convsmith.training import FitResult, TrainConfig

TITLE = "Train the control network on handwritten digits"
BATCH, EPOCHS = 64, 20


def fit(
    model: nn.Module, images: ImageData, config: TrainConfig, *, title: str = "train", out: Path | None = None
) -> FitResult:
    """Train a network of the demonstration on ``images``, always in batches of `BATCH` in the order of the seed.

    Raises:
        KeyboardInterrupt: the training was stopped.
    """
    from convsmith import data, training

    loader = data.Loader(images.train, BATCH, seed=config.seed, shuffle=True, augment=True, drop_last=True)
    with progress(title) as callback:
        result = training.fit(
            training.ClassificationTask(model, len(images.description.classes)),
            loader,
            config,
            validation=data.Loader(images.validation, BATCH),
            out=out,
            progress=callback,
        )
    if result.interrupted:
        raise KeyboardInterrupt("the demonstration was stopped; run it again with --overwrite")
    return result


def run(context: Context) -> None:
    """Train cs_resnet20 for 20 epochs, save it, evaluate it on the test split, write the sections."""
    import torch

    from convsmith import data, training
    from convsmith.models.storage import ModelRecipe, build, save_model

    images = data.load("digits", seed=context.seed, augment="digits")
    about = images.description
    kwargs = {"num_classes": len(about.classes), "in_chans": about.channels}
    recipe = ModelRecipe("cs_resnet20", kwargs, description=about.to_json())
    torch.manual_seed(context.seed)
    model = build(recipe)
    config = training.TrainConfig(epochs=EPOCHS, lr=0.1, seed=context.seed, device=context.device)
    fit(model, images, config, out=context.folder)
    save_model(context.folder, model, recipe)
    found = evaluation.evaluate(
        model, images.test, name="test", device=context.device, batch_size=BATCH, seed=context.seed
    )
    evaluation.show(found)
    evaluation.write_sections(found, context.folder)
    context.headline.update(evaluation.headline(found))
    context.images, context.model, context.recipe = images, model, recipe
