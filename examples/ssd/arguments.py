"""What `train` can be asked for, and what the answers are made into."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from examples.ssd.annotations import Split, find_beside, find_split
from examples.ssd.configurations import Configuration, Recipe
from examples.ssd.errors import RequestError
from examples.ssd.options import AMP, Options
from examples.ssd.programs import (
    add_detector,
    amount,
    existing_file,
    existing_folder,
    natural,
    new_folder,
    positive,
    share,
)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a detector on COCO or any set in its format."
    )
    add_detector(parser)
    start = parser.add_argument_group("where to start")
    start.add_argument(
        "--weights",
        default="pretrained",
        help="of the backbone: pretrained (default), none, or a file",
    )
    start.add_argument(
        "--init-from", type=existing_file, help="another detector's checkpoint: what fits is taken"
    )
    start.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out; of its options only --lr may change",
    )
    data = parser.add_argument_group("the images")
    data.add_argument(
        "--data", type=existing_folder, help="COCO's layout, or train/ and val/ with instances.json"
    )
    for name, verb in (("train", "train"), ("val", "evaluate")):
        data.add_argument(
            f"--{name}-json", type=existing_file, help=f"instead: the annotations to {verb} on"
        )
        data.add_argument(f"--{name}-images", type=existing_folder, help="and their images")
    data.add_argument("--first", type=positive, help="use only so many images")
    data.add_argument("--no-augment", dest="augment", action="store_false", help="resize only")
    data.add_argument(
        "--workers",
        type=natural,
        default=2,
        help="processes that read images (default: %(default)s)",
    )
    recipe = parser.add_argument_group("the recipe (default: the paper's for the row)")
    recipe.add_argument("--epochs", type=positive)
    recipe.add_argument("--batch", type=positive, help="images a step, over all processes")
    recipe.add_argument(
        "--lr",
        type=amount,
        help="may be lowered at --resume, where the loss was no number any more",
    )
    recipe.add_argument("--warmup", type=natural, help="epochs")
    recipe.add_argument("--weight-decay", type=amount, default=Options.weight_decay)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--out", type=new_folder, required=True, help="folder for checkpoints and logs"
    )
    how.add_argument("--device", help="cpu, cuda, ... (default: the GPU if there is one)")
    how.add_argument("--seed", type=natural, default=0)
    how.add_argument(
        "--amp", choices=tuple(AMP), default="off", help="mixed precision (default: off)"
    )
    how.add_argument("--channels-last", action="store_true")
    how.add_argument("--compile", action="store_true", help="torch.compile")
    how.add_argument(
        "--deterministic", action="store_true", help="the same weights on a GPU too, at some cost"
    )
    how.add_argument(
        "--ema", type=share, metavar="DECAY", help="average the weights, such as 0.999"
    )
    norms = how.add_mutually_exclusive_group()
    norms.add_argument(
        "--freeze-norms", action="store_true", help="batch norms keep their running statistics"
    )
    norms.add_argument(
        "--sync-norms",
        action="store_true",
        help="batch norms see the images of all processes, as one process would; else each sees its own",
    )
    how.add_argument(
        "--eval-every",
        type=natural,
        default=10,
        help="epochs; 0: only at the end (default: %(default)s)",
    )
    how.add_argument(
        "--log-every", type=positive, default=Options.log_every, help="steps (default: %(default)s)"
    )
    how.add_argument("--max-steps", type=positive, help="stop after so many, as a signal would")
    how.add_argument("--tensorboard", action="store_true")
    return parser.parse_args(argv)


def options_from(arguments: argparse.Namespace) -> Options:
    shared = {name: getattr(arguments, name) for name in Options.__dataclass_fields__}
    return Options(**shared)


def recipe_from(arguments: argparse.Namespace, row: Configuration) -> Recipe:
    asked = {
        "epochs": arguments.epochs,
        "batch": arguments.batch,
        "learning_rate": arguments.lr,
        "warmup": arguments.warmup,
    }
    return replace(row.recipe, **{k: v for k, v in asked.items() if v is not None})


def training_split(arguments: argparse.Namespace) -> Split:
    """The set that --train-json and --train-images name, or the one in --data."""
    named = _named_split(arguments, "train")
    if named is None and arguments.data is None:
        raise RequestError(
            "name the images: --data FOLDER, or --train-json FILE and --train-images FOLDER."
        )
    return named or find_split(arguments.data, "train")


def validation_split(arguments: argparse.Namespace) -> Split | None:
    """As `training_split`; None: there is nothing to evaluate on."""
    named = _named_split(arguments, "val")
    return named if named or arguments.data is None else find_beside(arguments.data, "val")


def _named_split(arguments: argparse.Namespace, name: str) -> Split | None:
    file, images = getattr(arguments, f"{name}_json"), getattr(arguments, f"{name}_images")
    if (file is None) != (images is None):
        raise RequestError(f"--{name}-json and --{name}-images go together.")
    return None if file is None else Split(file, images)
