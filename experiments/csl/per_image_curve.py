"""Input curvature of each training image under one checkpoint, under the published name and options.

    python experiments/csl/per_image_curve.py --data_path data --model_path base/model_parameters/index-0_epoch-200.pt
        --save_dir curvature --allowed_classes 3,7,11,19,23

h 1e-3, n 10, temperature 1, batch 50. The published numbers come from the mean loss of a batch and are not divided by
h: mean_k ||dg_k|| / B, B smaller in the last batch. They stay the default; `--scaling per_sample` divides by h instead.
"""

import argparse
import re
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from checkpoint_scoring import Claim, Scorer, choose_device, cifar100, epoch_scores
from published_options import add_device, add_strict, run
from torch import Tensor, nn

from plastiscope.data.samples import Batch
from plastiscope.error import DataError
from plastiscope.formats.checkpoints import read_state
from plastiscope.formats.flat_files import write_curvature
from plastiscope.formats.scoring_facts import facts_path, note_scored
from plastiscope.measure.class_schedule import ClassSchedule
from plastiscope.measure.input_curvature import Probe, input_curvature
from plastiscope.measure.loss import Loss
from plastiscope.run.processes import Processes

DATASET, BATCH_SIZE, CAP = "cifar100", 50, 100_000
DEFINITIONS = {
    "published": {"curvature": "legacy_curv / batch", "directional_eig": "legacy_directional_eig / batch"},
    "per_sample": {"curvature": "input_curv_norm", "directional_eig": "input_rayleigh_mean"},
}
ORIGIN = ("model_path", "scaling", "seed", "normalization", "allowed_classes")


def main(arguments: Sequence[str] | None = None) -> None:
    """Probe every image."""
    options = read_options(arguments)
    check_scaling(options)
    allowed = read_classes(options.allowed_classes)
    facts = curvature_facts(options)
    facts |= {"model_path": str(options.model_path.resolve()), "allowed_classes": allowed and list(allowed)}
    path = facts_path(options.save_dir, DATASET)
    claimed = Claim.make(path, facts, ORIGIN, [options.save_dir / "per_image_curvature.npy"])
    samples = cifar100(options.data_path, options.normalization, choose_device(options.device, Processes()))
    samples = samples.select(torch.arange(min(len(samples), CAP)))
    schedule = ClassSchedule(initial=len(allowed), maximum=len(allowed)) if allowed else ClassSchedule()
    scorer = Scorer(samples, allowed, BATCH_SIZE, Processes(), schedule)
    number = re.search(r"epoch[-_](\d+)", options.model_path.name)
    epoch = int(number[1]) if number else 0
    state, score = read_state(options.model_path), curvature_score(options)
    scored, values = scorer.score(state, options.model_path, epoch, score, claimed.parts(epoch))
    main_file = write_curvature(options.save_dir, DATASET, epoch_scores(epoch, scored, values, **facts))
    note_scored(path, epoch, options.model_path, main_file)
    print(main_file)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The published options, and those of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--data_path", "--model_path", "--save_dir"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--allowed_classes", default=None, help="such as 0,1,2: their images and outputs")
    add_curvature_options(parser)
    return parser.parse_args(arguments)


def add_curvature_options(parser: argparse.ArgumentParser) -> None:
    """--scaling, --seed, --device, --normalization, --strict."""
    parser.add_argument("--scaling", choices=tuple(DEFINITIONS), default="published")
    parser.add_argument("--seed", type=int, default=0, help="of the directions")
    add_device(parser)
    add_strict(parser)


def check_scaling(options: argparse.Namespace) -> None:
    """Say, or refuse when strict, that the published scale depends on the batch and on h."""
    if options.scaling == "published":
        text = (
            "the published curvature is divided by the size of the batch and not by h, and the last batch is smaller; "
            "--scaling per_sample gives mean ||dg|| / h"
        )
        if options.strict:
            raise DataError(f"{text}.")
        warnings.warn(text, stacklevel=2)


def read_classes(text: str | None) -> tuple[int, ...] | None:
    """Classes from "0,1,2"; DataError if that is no list of distinct classes."""
    if text is None:
        return None
    words = [word for word in text.strip("[] ").split(",") if word.strip()]
    if not words or not all(word.strip().isdigit() for word in words) or len(set(map(int, words))) < len(words):
        raise DataError(f"--allowed_classes {text}: give distinct classes with commas between them, such as 0,1,2.")
    return tuple(map(int, words))


def curvature_facts(options: argparse.Namespace) -> dict[str, object]:
    """What the numbers are."""
    probe = Probe(seed=options.seed)
    facts = {"h": probe.h, "n": probe.directions, "temperature": probe.temperature, "batch": BATCH_SIZE}
    more = {"seed": options.seed, "scaling": options.scaling, "normalization": options.normalization}
    return facts | more | {"definitions": DEFINITIONS[options.scaling]}


def curvature_score(options: argparse.Namespace) -> partial[dict[str, Tensor]]:
    """The score of a batch in the chosen scaling."""
    return partial(curvature, probe=Probe(seed=options.seed), published=options.scaling == "published")


def curvature(net: nn.Module, batch: Batch, outputs: int, probe: Probe, published: bool) -> dict[str, Tensor]:
    """`curvature` and `directional_eig` of each image."""
    found = input_curvature(net, Loss.cross_entropy, batch.inputs, batch.targets, batch.ids, outputs, probe)
    if not published:
        return {"curvature": found.norm, "directional_eig": found.rayleigh_mean}
    b = len(batch.ids)
    return {"curvature": found.legacy_curv / b, "directional_eig": found.legacy_directional_eig / b}


if __name__ == "__main__":
    run(main)
